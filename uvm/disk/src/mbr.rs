//! MBR partition tables: read only, but for the protective MBR in front of a GPT (UEFI 2.10, 5.2).

use crate::field::{le16, le32, put, read as read_bytes};
use crate::{BlockDevice, Result};

const PROTECTIVE: u8 = 0xee;
const SIGNATURE: u16 = 0xaa55;
const DISK_SIGNATURE_END: usize = 446;
/// Logical partitions followed; no system makes more, and a hostile chain may be a circle.
const MAX_LOGICAL: u32 = 124;

/// A partition of an MBR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MbrPartition {
    /// 1 to 4 for a primary one, from 5 for a logical one.
    pub number: u32,
    /// System id.
    pub kind: u8,
    /// The active flag.
    pub bootable: bool,
    /// First block.
    pub starting_lba: u64,
    /// Number of blocks.
    pub blocks: u64,
}

/// A master boot record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mbr {
    /// The disk's signature.
    pub disk_signature: u32,
    /// Used entries, the extended ones included.
    pub partitions: Vec<MbrPartition>,
}

impl Mbr {
    /// Whether it only guards a GPT.
    pub fn is_protective(&self) -> bool {
        self.partitions.iter().any(|p| p.kind == PROTECTIVE)
    }
}

pub(crate) fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

fn entries(block: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    (1..).zip(block.get(446..510).unwrap_or_default().chunks_exact(16))
}

fn decode(number: u32, entry: &[u8], base: u64) -> MbrPartition {
    MbrPartition {
        number,
        kind: entry[4],
        bootable: entry[0] == 0x80,
        starting_lba: base + u64::from(le32(entry, 8)),
        blocks: u64::from(le32(entry, 12)),
    }
}

/// Decodes the first block of a device; `None` where it is no MBR: the signature is missing, or an entry
/// has no valid active flag (then it is the boot sector of a file system).
pub fn parse(block: &[u8]) -> Option<Mbr> {
    if le16(block, 510) != SIGNATURE || entries(block).any(|(_, e)| e[0] & 0x7f != 0) {
        return None;
    }
    let used = entries(block).filter(|(_, e)| e[4] != 0 && le32(e, 12) != 0);
    let partitions: Vec<_> = used.map(|(number, e)| decode(number, e, 0)).collect();
    Some(Mbr { disk_signature: le32(block, 440), partitions })
}

/// Reads the table with its logical partitions; `None` where there is none.
pub fn read(device: &dyn BlockDevice) -> Result<Option<Mbr>> {
    let geometry = device.geometry();
    let block_size = geometry.logical_block_size;
    if geometry.blocks() == 0 {
        return Ok(None);
    }
    let block = read_bytes(device, 0, block_size as usize, "reading the MBR")?;
    let Some(mut mbr) = parse(&block) else { return Ok(None) };
    let Some(extended) = mbr.partitions.iter().find(|p| is_extended(p.kind)).map(|p| p.starting_lba) else {
        return Ok(Some(mbr));
    };
    let mut lba = extended;
    for number in 5..5 + MAX_LOGICAL {
        if lba >= geometry.blocks() {
            break;
        }
        let offset = lba * u64::from(block_size);
        let block = read_bytes(device, offset, block_size as usize, "reading an extended boot record")?;
        if le16(&block, 510) != SIGNATURE {
            break;
        }
        let mut pair = entries(&block).map(|(_, e)| e);
        let (Some(logical), Some(next)) = (pair.next(), pair.next()) else { break };
        if logical[4] != 0 && le32(logical, 12) != 0 {
            mbr.partitions.push(decode(number, logical, lba));
        }
        let step = u64::from(le32(next, 8));
        if !is_extended(next[4]) || step == 0 {
            break;
        }
        lba = extended + step;
    }
    Ok(Some(mbr))
}

/// The protective MBR for a device of `blocks` blocks. Boot code and disk signature of a protective MBR
/// that is there already stay; anything else does not.
pub(crate) fn protective(current: &[u8], blocks: u64) -> Vec<u8> {
    let mut block = vec![0; current.len()];
    if parse(current).is_some_and(|mbr| mbr.is_protective()) {
        block[..DISK_SIGNATURE_END].copy_from_slice(&current[..DISK_SIGNATURE_END]);
    }
    let covered = u32::try_from(blocks - 1).unwrap_or(u32::MAX);
    let entry = &mut block[446..462];
    put(entry, 1, &[0x00, 0x02, 0x00, PROTECTIVE, 0xff, 0xff, 0xff]);
    put(entry, 8, &1u32.to_le_bytes());
    put(entry, 12, &covered.to_le_bytes());
    put(&mut block, 510, &SIGNATURE.to_le_bytes());
    block
}
