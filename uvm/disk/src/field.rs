//! Numbers in on-disk structures, and reads and writes that say what they were for.

use crate::{BlockDevice, Error, ErrorKind, Result};

/// The `N` bytes at `at`; zeroes where the buffer ends first, so that hostile bytes cannot panic us.
pub(crate) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    if let Some(source) = at.checked_add(N).and_then(|end| bytes.get(at..end)) {
        field.copy_from_slice(source);
    }
    field
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes_at(bytes, at))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes_at(bytes, at))
}

/// Puts `value` at `at` of a buffer of our own making.
pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Reads `len` bytes at `offset`. An extent that is not on the device is [`ErrorKind::Corrupt`]:
/// something read before led us there.
pub(crate) fn read(device: &dyn BlockDevice, offset: u64, len: usize, context: &str) -> Result<Vec<u8>> {
    if offset.checked_add(len as u64).is_none_or(|end| end > device.geometry().size) {
        let context = format!("{context}: {len} bytes at {offset} are not on the device");
        return Err(Error::new(ErrorKind::Corrupt, context).at(offset));
    }
    let mut bytes = vec![0; len];
    device.read_at(offset, &mut bytes).map_err(|e| Error::io(context, offset, e))?;
    Ok(bytes)
}

pub(crate) fn write(device: &dyn BlockDevice, offset: u64, bytes: &[u8], context: &str) -> Result<()> {
    device.write_at(offset, bytes).map_err(|e| Error::io(context, offset, e))
}

pub(crate) fn flush(device: &dyn BlockDevice, context: &str) -> Result<()> {
    device.flush().map_err(|e| Error::io(context, 0, e))
}

/// Reads back what was written and flushed before.
pub(crate) fn expect(device: &dyn BlockDevice, offset: u64, bytes: &[u8], context: &str) -> Result<()> {
    let found = read(device, offset, bytes.len(), context)?;
    match found.iter().zip(bytes).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(first) => {
            let at = offset + first as u64;
            Err(Error::new(ErrorKind::VerificationFailed, format!("{context}: byte {at} differs")).at(at))
        }
    }
}
