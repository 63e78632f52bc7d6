//! Little-endian fields at fixed offsets, and the checksum over them.

/// CRC-32C the way ext4 chains it: no inversion at either end.
pub(super) fn crc(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// CRC-16 with the polynomial 0x8005, least bit first: that of group descriptors without metadata_csum.
pub(super) fn crc16(seed: u16, data: &[u8]) -> u16 {
    data.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xA001 } else { 0 })
    })
}

pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn low16(value: u32) -> u16 {
    (value & 0xFFFF) as u16
}

pub(super) fn high16(value: u32) -> u16 {
    (value >> 16) as u16
}

pub(super) fn low32(value: u64) -> u32 {
    (value & 0xFFFF_FFFF) as u32
}

pub(super) fn high32(value: u64) -> u32 {
    (value >> 32) as u32
}
