//! The boot sector: where the `$MFT` is, and the sizes of things.

use crate::field::{le16, le32, le64, put, read};
use crate::{BlockDevice, Error, ErrorKind, Result};

/// Bytes at the start of the volume that `$Boot` holds: the boot sector, and room for boot code.
pub(super) const BOOT_SIZE: u64 = 8192;
pub(super) const MAGIC: &[u8; 8] = b"NTFS    ";
const BOOT_CODE_AT: usize = 0x54;
/// `int 18h` (tell the firmware that this is no boot disk), then halt for ever.
const BOOT_CODE: [u8; 5] = [0xcd, 0x18, 0xf4, 0xeb, 0xfd];
/// Windows 10 makes clusters up to 2 MiB.
const MAX_CLUSTER_SIZE: u64 = 2 << 20;
const MAX_RECORD_SIZE: u64 = 64 << 10;

/// What the boot sector says, in sizes that make sense together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) sector_size: u32,
    pub(super) cluster_size: u32,
    /// Sectors of the volume. One more follows, with the backup of this one.
    pub(super) sectors: u64,
    pub(super) hidden_sectors: u32,
    pub(super) mft_lcn: u64,
    pub(super) mirror_lcn: u64,
    pub(super) record_size: u32,
    pub(super) index_block_size: u32,
    pub(super) serial: u64,
}

impl Boot {
    /// Whole clusters in the volume.
    pub(super) fn clusters(&self) -> u64 {
        self.sectors * u64::from(self.sector_size) / u64::from(self.cluster_size)
    }

    /// One sector.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.sector_size as usize];
        // A jump over the fields to the boot code.
        put(&mut bytes, 0, &[0xeb, BOOT_CODE_AT as u8 - 2, 0x90]);
        put(&mut bytes, 3, MAGIC);
        put(&mut bytes, 11, &(self.sector_size as u16).to_le_bytes());
        // At most 128 by the cluster sizes we make.
        bytes[13] = (self.cluster_size / self.sector_size) as u8;
        bytes[21] = 0xf8;
        // The geometry that everybody says a disk has.
        put(&mut bytes, 24, &63_u16.to_le_bytes());
        put(&mut bytes, 26, &255_u16.to_le_bytes());
        put(&mut bytes, 28, &self.hidden_sectors.to_le_bytes());
        put(&mut bytes, 36, &[0x80, 0, 0x80, 0]);
        put(&mut bytes, 40, &self.sectors.to_le_bytes());
        put(&mut bytes, 48, &self.mft_lcn.to_le_bytes());
        put(&mut bytes, 56, &self.mirror_lcn.to_le_bytes());
        bytes[64] = self.encode_size(self.record_size);
        bytes[68] = self.encode_size(self.index_block_size);
        put(&mut bytes, 72, &self.serial.to_le_bytes());
        put(&mut bytes, BOOT_CODE_AT, &BOOT_CODE);
        put(&mut bytes, 510, &[0x55, 0xaa]);
        bytes
    }

    /// Clusters, or where it is less than one, the negative power of two in bytes.
    fn encode_size(&self, size: u32) -> u8 {
        match size / self.cluster_size {
            0 => (size.trailing_zeros() as u8).wrapping_neg(),
            clusters => clusters as u8,
        }
    }

    /// Reads the boot sector.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is none of NTFS; [`ErrorKind::Corrupt`] where it contradicts itself or the
    /// device.
    pub(super) fn read(device: &dyn BlockDevice) -> Result<Self> {
        let size = device.geometry().size;
        if size < BOOT_SIZE {
            return Err(Error::new(ErrorKind::NotFound, "no NTFS volume is as small as this"));
        }
        let bytes = read(device, 0, 512, "reading the NTFS boot sector")?;
        if bytes.get(3..11) != Some(MAGIC.as_slice()) {
            return Err(Error::new(ErrorKind::NotFound, "no NTFS boot sector"));
        }
        Self::decode(&bytes, size).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "the NTFS boot sector contradicts itself or the device's size")
                .at(0)
        })
    }

    fn decode(bytes: &[u8], device_size: u64) -> Option<Self> {
        let sector_size = u64::from(le16(bytes, 11));
        let cluster_size = match bytes[13] {
            sectors @ 1..=128 => sector_size * u64::from(sectors),
            // A negative power of two.
            power @ 0xf4.. => sector_size << power.wrapping_neg(),
            _ => return None,
        };
        let sizes = [sector_size, cluster_size];
        if !sizes.iter().all(|size| size.is_power_of_two())
            || !(512..=4096).contains(&sector_size)
            || cluster_size > MAX_CLUSTER_SIZE
        {
            return None;
        }
        let sectors = le64(bytes, 40);
        let size = sectors.checked_mul(sector_size)?;
        let decoded = Self {
            sector_size: u32::try_from(sector_size).ok()?,
            cluster_size: u32::try_from(cluster_size).ok()?,
            sectors,
            hidden_sectors: le32(bytes, 28),
            mft_lcn: le64(bytes, 48),
            mirror_lcn: le64(bytes, 56),
            record_size: decode_size(bytes[64], cluster_size)?,
            index_block_size: decode_size(bytes[68], cluster_size)?,
            serial: le64(bytes, 72),
        };
        let clusters = decoded.clusters();
        let plausible = size <= device_size && clusters <= 1 << 32 && decoded.mft_lcn < clusters;
        plausible.then_some(decoded)
    }
}

/// A power of two from 512 to 64 KiB.
fn decode_size(field: u8, cluster_size: u64) -> Option<u32> {
    let size = match i8::from_le_bytes([field]) {
        clusters @ 1.. => cluster_size * u64::from(clusters.unsigned_abs()),
        power => 1_u64.checked_shl(u32::from(power.unsigned_abs()))?,
    };
    let fits = size.is_power_of_two() && (512..=MAX_RECORD_SIZE).contains(&size);
    fits.then_some(size as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for (sector_size, cluster_size) in [(512, 512), (512, 65_536), (4096, 4096), (4096, 65_536)] {
            let boot = Boot {
                sector_size,
                cluster_size,
                sectors: 1 << 20,
                hidden_sectors: 2048,
                mft_lcn: 4,
                mirror_lcn: 9,
                record_size: sector_size.max(1024),
                index_block_size: 4096,
                serial: 0x1234_5678_9abc_def0,
            };
            assert_eq!(Boot::decode(&boot.encode(), 1 << 33), Some(boot));
            assert_eq!(Boot::decode(&boot.encode(), (1 << 20) - 1), None, "larger than the device");
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for (at, value) in
            [(11, 0), (11, 1), (13, 0), (13, 3), (13, 200), (64, 0x80), (64, 3), (68, 0), (68, 0x7f)]
        {
            let boot = Boot {
                sector_size: 512,
                cluster_size: 4096,
                sectors: 1 << 20,
                hidden_sectors: 0,
                mft_lcn: 4,
                mirror_lcn: 9,
                record_size: 1024,
                index_block_size: 4096,
                serial: 0,
            };
            let mut bytes = boot.encode();
            bytes[at] = value;
            if at == 11 {
                bytes[12] = 0;
            }
            assert_eq!(Boot::decode(&bytes, 1 << 33), None, "{value} at {at}");
        }
    }
}
