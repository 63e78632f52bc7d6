//! Reads records of any volume: what is there is hostile.

use super::boot::Boot;
use super::record::Extent;
use super::{FILE_MAGIC, STRIDE, file, kind};
use crate::field::{le16, le32, le64, read};
use crate::{BlockDevice, Error, ErrorKind, Result};

/// Pieces one file's contents may lie in: 24 bytes of memory each.
const MAX_EXTENTS: usize = 1 << 20;
/// Windows has no longer list of attributes.
const MAX_ATTRIBUTE_LIST: u64 = 256 << 10;
/// A record number has 48 bits; the rest of a reference is the sequence number.
const RECORD_NUMBER: u64 = (1 << 48) - 1;

pub(super) fn corrupt(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, context)
}

/// Contents that lie in clusters of their own.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// First cluster of the file and where it lies; each goes to the next one's first.
    extents: Vec<(u64, Extent)>,
    /// Clusters of all extents.
    clusters: u64,
    /// Bytes.
    pub(super) size: u64,
    /// What lies after it reads as zero.
    pub(super) initialized: u64,
}

impl Stream {
    /// Takes the next piece of an attribute that is not resident.
    fn append(&mut self, attribute: &Attribute<'_>, boot: &Boot) -> Result<()> {
        let bad = || corrupt("an NTFS run list is not right");
        if attribute.is_resident() || attribute.lowest_vcn() != self.clusters {
            return Err(bad());
        }
        // Compressed, encrypted or sparse.
        if le16(attribute.bytes, 12) != 0 {
            return Err(Error::new(ErrorKind::Unsupported, "an NTFS system file is compressed or sparse"));
        }
        if self.clusters == 0 {
            self.size = le64(attribute.bytes, 48);
            self.initialized = le64(attribute.bytes, 56).min(self.size);
        }
        let mut lcn = 0_u64;
        let mut pairs = attribute.run_list().ok_or_else(bad)?;
        while let Some((length, offset, rest)) = mapping_pair(pairs).ok_or_else(bad)? {
            pairs = rest;
            let clusters = u64::try_from(length).ok().filter(|clusters| *clusters > 0).ok_or_else(bad)?;
            let place = match offset {
                None => None,
                Some(offset) => {
                    lcn = lcn.checked_add_signed(offset).ok_or_else(bad)?;
                    let end = lcn.checked_add(clusters).filter(|end| *end <= boot.clusters());
                    end.ok_or_else(bad)?;
                    Some(lcn)
                }
            };
            if self.extents.len() >= MAX_EXTENTS {
                return Err(Error::new(ErrorKind::Unsupported, "an NTFS system file is in too many pieces"));
            }
            self.extents.push((self.clusters, Extent { lcn: place, clusters }));
            self.clusters = self.clusters.checked_add(clusters).ok_or_else(bad)?;
        }
        Ok(())
    }

    /// Fills `buf` from `offset`, which all has to be in clusters that were written.
    pub(super) fn read_at(
        &self,
        device: &dyn BlockDevice,
        boot: &Boot,
        offset: u64,
        buf: &mut [u8],
        context: &str,
    ) -> Result<()> {
        let cluster_size = u64::from(boot.cluster_size);
        let mut done = 0;
        while done < buf.len() {
            let at = offset.checked_add(done as u64).ok_or_else(|| corrupt(context))?;
            let index = self.extents.partition_point(|(vcn, _)| *vcn <= at / cluster_size);
            let found = index.checked_sub(1).and_then(|index| self.extents.get(index));
            let inside = found.and_then(|(vcn, extent)| {
                // Both are below what the cluster numbers of a volume allow, see `append`.
                let skip = at.checked_sub(vcn.checked_mul(cluster_size)?)?;
                let left =
                    extent.clusters.checked_mul(cluster_size)?.checked_sub(skip).filter(|left| *left > 0)?;
                Some((extent.lcn?.checked_mul(cluster_size)?.checked_add(skip)?, left))
            });
            let (from, left) =
                inside.ok_or_else(|| corrupt(format!("{context}: it has no cluster there")))?;
            let take = left.min((buf.len() - done) as u64) as usize;
            let part = &mut buf[done..done + take];
            device.read_at(from, part).map_err(|e| Error::io(context, from, e))?;
            done += take;
        }
        Ok(())
    }
}

/// The next run: its length, how far it lies from the one before (a hole lies nowhere), and what follows. `None`
/// where the list is cut short, `Some(None)` at its end.
#[expect(clippy::type_complexity)]
fn mapping_pair(pairs: &[u8]) -> Option<Option<(i64, Option<i64>, &[u8])>> {
    let (head, rest) = pairs.split_first()?;
    if *head == 0 {
        return Some(None);
    }
    let (length, rest) = rest.split_at_checked(usize::from(head & 15))?;
    let (offset, rest) = rest.split_at_checked(usize::from(head >> 4))?;
    let offset = if offset.is_empty() { None } else { Some(signed(offset)?) };
    Some(Some((signed(length)?, offset, rest)))
}

/// A little-endian number of at most eight bytes with a sign.
fn signed(bytes: &[u8]) -> Option<i64> {
    let mut number = [if *bytes.last()? < 0x80 { 0 } else { 0xff }; 8];
    number.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(number))
}

/// An attribute in a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute<'r> {
    bytes: &'r [u8],
}

impl<'r> Attribute<'r> {
    fn kind(&self) -> u32 {
        le32(self.bytes, 0)
    }
    fn is_resident(&self) -> bool {
        self.bytes.get(8) == Some(&0)
    }
    fn is_named(&self) -> bool {
        self.bytes.get(9) != Some(&0)
    }
    fn lowest_vcn(&self) -> u64 {
        if self.is_resident() { 0 } else { le64(self.bytes, 16) }
    }
    /// The value, where it is in the record.
    pub(super) fn value(&self) -> Option<&'r [u8]> {
        if !self.is_resident() {
            return None;
        }
        let at = usize::from(le16(self.bytes, 20));
        self.bytes.get(at..)?.get(..le32(self.bytes, 16) as usize)
    }
    fn run_list(&self) -> Option<&'r [u8]> {
        self.bytes.get(usize::from(le16(self.bytes, 32)).max(0x40)..)
    }
}

/// A record whose update sequence was checked and undone.
pub(super) struct Record {
    bytes: Vec<u8>,
}

impl Record {
    fn new(mut bytes: Vec<u8>, number: u64) -> Result<Self> {
        if bytes.get(..4) != Some(FILE_MAGIC.as_slice()) {
            return Err(corrupt(format!("NTFS file record {number} has no signature")));
        }
        unprotect(&mut bytes).ok_or_else(|| corrupt(format!("NTFS file record {number} is torn")))?;
        if le16(&bytes, 22) & super::record::IN_USE == 0 {
            return Err(corrupt(format!("NTFS file record {number} is not in use")));
        }
        Ok(Self { bytes })
    }

    /// The record whose attributes did not fit and are here; itself 0.
    fn base(&self) -> u64 {
        le64(&self.bytes, 32) & RECORD_NUMBER
    }

    /// All attributes; an error where the chain of them breaks.
    fn attributes(&self) -> impl Iterator<Item = Result<Attribute<'_>>> {
        let mut rest = self.bytes.get(usize::from(le16(&self.bytes, 20))..).unwrap_or_default();
        let mut ended = false;
        std::iter::from_fn(move || {
            if ended || le32(rest, 0) == kind::END {
                return None;
            }
            let len = le32(rest, 4) as usize;
            let Some((bytes, after)) = rest.split_at_checked(len).filter(|_| len >= 24) else {
                ended = true;
                return Some(Err(corrupt("the attributes of an NTFS file record are not right")));
            };
            rest = after;
            Some(Ok(Attribute { bytes }))
        })
    }

    /// The unnamed attribute of this type, or the piece of it that begins with a cluster.
    pub(super) fn find(&self, kind: u32, lowest_vcn: u64) -> Result<Option<Attribute<'_>>> {
        for attribute in self.attributes() {
            let attribute = attribute?;
            if attribute.kind() == kind && !attribute.is_named() && attribute.lowest_vcn() == lowest_vcn {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }
}

/// Checks the update sequence of a record and puts the bytes back that it replaced; `None` where it is torn.
pub(super) fn unprotect(bytes: &mut [u8]) -> Option<()> {
    let (at, count) = (usize::from(le16(bytes, 4)), usize::from(le16(bytes, 6)));
    if count != bytes.len() / STRIDE + 1 {
        return None;
    }
    // The array lies before the end of the first stride, which it must not replace in itself.
    let array = bytes.get(..STRIDE - 2)?.get(at..at.checked_add(2 * count)?)?.to_vec();
    let (number, saved) = array.split_at_checked(2)?;
    for (stride, saved) in bytes.chunks_exact_mut(STRIDE).zip(saved.chunks_exact(2)) {
        let end = stride.get_mut(STRIDE - 2..)?;
        if end != number {
            return None;
        }
        end.copy_from_slice(saved);
    }
    Some(())
}

/// A volume whose `$MFT` is found.
pub(super) struct Volume<'d> {
    device: &'d dyn BlockDevice,
    pub(super) boot: Boot,
    mft: Stream,
}

impl<'d> Volume<'d> {
    /// Finds the `$MFT`, all pieces of it.
    ///
    /// # Errors
    /// As [`Boot::read`], and [`ErrorKind::Corrupt`] where the first record is not right.
    pub(super) fn open(device: &'d dyn BlockDevice) -> Result<Self> {
        let boot = Boot::read(device)?;
        // Its first cluster is where the boot sector says; its other records are found by its own first record.
        let first = boot.mft_lcn * u64::from(boot.cluster_size);
        let bytes = read(device, first, boot.record_size as usize, "reading the first record of the $MFT")?;
        let record = Record::new(bytes, 0)?;
        let mut volume = Self { device, boot, mft: Stream::default() };
        if let Some(attribute) = record.find(kind::DATA, 0)? {
            volume.mft.append(&attribute, &boot)?;
        }
        for (holder, lowest_vcn) in volume.pieces(&record, u64::from(file::MFT))? {
            if lowest_vcn > 0 {
                let holder = volume.record(holder)?;
                let attribute = holder.find(kind::DATA, lowest_vcn)?;
                volume
                    .mft
                    .append(&attribute.ok_or_else(|| corrupt("a piece of the $MFT is missing"))?, &boot)?;
            }
        }
        Ok(volume)
    }

    /// A record of the `$MFT`.
    pub(super) fn record(&self, number: u64) -> Result<Record> {
        let size = u64::from(self.boot.record_size);
        let offset = number.checked_mul(size);
        let inside = offset.filter(|at| at.checked_add(size).is_some_and(|end| end <= self.mft.initialized));
        let offset = inside.ok_or_else(|| corrupt(format!("the $MFT has no record {number}")))?;
        let mut bytes = vec![0; self.boot.record_size as usize];
        let context = format!("reading NTFS file record {number}");
        self.mft.read_at(self.device, &self.boot, offset, &mut bytes, &context)?;
        Record::new(bytes, number)
    }

    /// The contents of a system file.
    pub(super) fn data(&self, number: u32) -> Result<Stream> {
        let number = u64::from(number);
        let missing = || corrupt(format!("NTFS file record {number} has no contents of its own"));
        let record = self.record(number)?;
        let mut stream = Stream::default();
        for (holder, lowest_vcn) in self.pieces(&record, number)? {
            let other;
            let holder = if holder == number {
                &record
            } else {
                other = self.record(holder)?;
                if other.base() != number {
                    return Err(missing());
                }
                &other
            };
            let attribute = holder.find(kind::DATA, lowest_vcn)?.ok_or_else(missing)?;
            stream.append(&attribute, &self.boot)?;
        }
        Ok(stream)
    }

    /// The records that hold the pieces of a file's contents, and the first cluster of each piece.
    fn pieces(&self, record: &Record, number: u64) -> Result<Vec<(u64, u64)>> {
        const MIN_ENTRY: usize = 26;
        let Some(list) = record.find(kind::ATTRIBUTE_LIST, 0)? else { return Ok(vec![(number, 0)]) };
        let list = match list.value() {
            Some(value) => value.to_vec(),
            None => {
                let mut stream = Stream::default();
                stream.append(&list, &self.boot)?;
                if stream.size > MAX_ATTRIBUTE_LIST {
                    return Err(corrupt("an NTFS attribute list is too long"));
                }
                let mut bytes = vec![0; stream.size as usize];
                let context = "reading an NTFS attribute list";
                stream.read_at(self.device, &self.boot, 0, &mut bytes, context)?;
                bytes
            }
        };
        let mut pieces = Vec::new();
        let mut rest = list.as_slice();
        while !rest.is_empty() {
            let len = usize::from(le16(rest, 4));
            let (entry, after) = rest
                .split_at_checked(len)
                .filter(|_| len >= MIN_ENTRY)
                .ok_or_else(|| corrupt("an NTFS attribute list is not right"))?;
            rest = after;
            if le32(entry, 0) == kind::DATA && entry[6] == 0 {
                pieces.push((le64(entry, 16) & RECORD_NUMBER, le64(entry, 8)));
            }
        }
        Ok(pieces)
    }

    /// The value of an attribute of `$Volume`.
    pub(super) fn volume_attribute(&self, kind: u32) -> Result<Option<Vec<u8>>> {
        let record = self.record(u64::from(file::VOLUME))?;
        let attribute = record.find(kind, 0)?;
        Ok(attribute.and_then(|attribute| attribute.value().map(<[u8]>::to_vec)))
    }
}

/// The label of a volume, where it has one.
pub(crate) fn label(device: &dyn BlockDevice) -> Result<Option<String>> {
    let value = Volume::open(device)?.volume_attribute(kind::VOLUME_NAME)?.unwrap_or_default();
    let units: Vec<u16> = value.chunks_exact(2).map(|unit| le16(unit, 0)).collect();
    Ok(Some(String::from_utf16_lossy(&units)).filter(|label| !label.is_empty()))
}
