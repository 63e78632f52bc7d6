//! A layer that remembers what was written, and proves that the device has it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use crate::field::{flush, read};
use crate::{BlockDevice, Device, Error, ErrorKind, Geometry, Result};

/// Longest record that grows by sequential writes, and longest read while verifying.
const MAX_RECORD: u64 = 1 << 20;

/// What an extent must read as.
#[derive(Clone, Copy)]
enum Content {
    Zero,
    Crc(u32),
}

#[derive(Clone, Copy)]
struct Record {
    len: u64,
    content: Content,
}

/// Extents by offset; they never overlap.
type Records = BTreeMap<u64, Record>;

/// Passes everything on to a device, and keeps a CRC of every extent written, some 32 bytes for up to
/// a MiB. [`Recorder::verify`] reads all of them back.
///
/// Bytes are compared as they were last written. Where a write covers a part of an earlier one, the rest
/// of that one is read back, checked as a whole and recorded anew, before the write.
pub struct Recorder {
    device: Device,
    records: Mutex<Records>,
}

impl Recorder {
    /// Nothing is recorded yet.
    pub fn new(device: Device) -> Self {
        Self { device, records: Mutex::default() }
    }

    /// Flushes, reads back every extent and compares. Returns the bytes verified; `progress` gets them on
    /// the way. [`ErrorKind::VerificationFailed`] carries the offset of the extent that differs.
    pub fn verify(&self, progress: &mut dyn FnMut(u64) -> Result<()>) -> Result<u64> {
        flush(&*self.device, "flushing before verification")?;
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut done = 0;
        for (offset, record) in records {
            check(&*self.device, offset, record, &mut |len| {
                done += len;
                progress(done)
            })?;
        }
        Ok(done)
    }

    /// Writes by `write`, and records it.
    fn record(
        &self,
        offset: u64,
        len: u64,
        bytes: Option<&[u8]>,
        write: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if len == 0 {
            return write();
        }
        // Held over the write: records must be in the order of the writes.
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&*self.device, &mut records, offset, len)?;
        write()?;
        let end_of_last = |(start, record): (&u64, &mut Record)| (*start + record.len, *start);
        if let Some(bytes) = bytes {
            let last = records.range_mut(..offset).next_back().map(end_of_last);
            if let Some((end, start)) = last
                && end == offset
                && let Some(record) = records.get_mut(&start)
                && let Content::Crc(crc) = &mut record.content
                && record.len + len <= MAX_RECORD
            {
                let mut hasher = crc32fast::Hasher::new_with_initial(*crc);
                hasher.update(bytes);
                *crc = hasher.finalize();
                record.len += len;
                return Ok(());
            }
            let mut at = offset;
            for piece in bytes.chunks(MAX_RECORD as usize) {
                let content = Content::Crc(crc32fast::hash(piece));
                records.insert(at, Record { len: piece.len() as u64, content });
                at += piece.len() as u64;
            }
        } else {
            records.insert(offset, Record { len, content: Content::Zero });
        }
        Ok(())
    }
}

/// Compares one extent with its record.
fn check(
    device: &dyn BlockDevice,
    offset: u64,
    record: Record,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut hasher = crc32fast::Hasher::new();
    let mut done = 0;
    while done < record.len {
        let len = MAX_RECORD.min(record.len - done);
        let bytes = read(device, offset + done, len as usize, "reading back what was written")?;
        let zero = bytes.iter().all(|b| *b == 0);
        hasher.update(&bytes);
        if matches!(record.content, Content::Zero) && !zero {
            return Err(differs(offset + done, len));
        }
        done += len;
        progress(len)?;
    }
    match record.content {
        Content::Crc(crc) if hasher.finalize() != crc => Err(differs(offset, record.len)),
        _ => Ok(()),
    }
}

fn differs(offset: u64, len: u64) -> Error {
    let context = format!("{len} bytes at {offset} do not read back as written");
    Error::new(ErrorKind::VerificationFailed, context).at(offset)
}

/// Takes the range out of the records; parts of records that stick out stay, each checked before.
fn make_room(device: &dyn BlockDevice, records: &mut Records, offset: u64, len: u64) -> io::Result<()> {
    let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
    let before = records.range(..offset).next_back().filter(|(start, r)| **start + r.len > offset);
    let first = before.map_or(offset, |(start, _)| *start);
    let overlapped: Vec<(u64, Record)> = records.range(first..end).map(|(start, r)| (*start, *r)).collect();
    for (start, record) in overlapped {
        let record_end = start + record.len;
        let rests = [(start, offset.min(record_end)), (end.max(start), record_end)];
        let rests = rests.into_iter().filter(|(from, to)| from < to);
        let mut kept = Vec::new();
        for (from, to) in rests {
            let content = match record.content {
                Content::Zero => Content::Zero,
                Content::Crc(_) => {
                    let mut bytes = vec![0; (to - from) as usize];
                    device.read_at(from, &mut bytes)?;
                    Content::Crc(crc32fast::hash(&bytes))
                }
            };
            kept.push((from, Record { len: to - from, content }));
        }
        if !kept.is_empty() && matches!(record.content, Content::Crc(_)) {
            // Else a fault of the device would become the truth we verify against.
            check(device, start, record, &mut |_| Ok(())).map_err(io::Error::other)?;
        }
        records.remove(&start);
        records.extend(kept);
    }
    Ok(())
}

impl BlockDevice for Recorder {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.record(offset, buf.len() as u64, Some(buf), || self.device.write_at(offset, buf))
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.record(offset, len, None, || self.device.write_zeroes(offset, len))
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&*self.device, &mut records, offset, len)?;
        self.device.discard(offset, len)
    }
    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }
}
