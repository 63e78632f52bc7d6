//! The numbers in a tar header: octal digits among spaces and NULs, or GNU's base 256 where the first bit is set.
//!
//! The crate has no blank fields and no leading NULs, which GNU tar takes, and its errors quote the field as it is.

use tar::Header;

use super::archive::corrupt;
use crate::error::Result;
use crate::path::printable;

/// Bytes of a header, and the unit of an archive.
const BLOCK: usize = 512;

/// The number in a field. A blank one is 0, as every reader takes it: writers leave out what they do not know.
pub(super) fn number(name: &str, field: &[u8]) -> Result<u64> {
    let malformed = || corrupt(&format!("the {name} of a tar header is {}, no number", printable(field)));
    match field {
        [first, rest @ ..] if first & 0x80 != 0 => {
            // The last 64 bits, of which a negative number is the two's complement.
            let start = u64::from(if field.len() > 8 { 0 } else { first & 0x7F });
            Ok(rest[rest.len().saturating_sub(8)..].iter().fold(start, |n, byte| n << 8 | u64::from(*byte)))
        }
        _ => {
            let blank = |byte: &u8| matches!(byte, b' ' | 0);
            let Some(start) = field.iter().position(|byte| !blank(byte)) else { return Ok(0) };
            let digits = field[start..].split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii_end();
            // It would take a sign.
            let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'));
            digits.and_then(|digits| u64::from_str_radix(digits, 8).ok()).ok_or_else(malformed)
        }
    }
}

/// Major and minor number of a device; `None` in a header from before ustar.
pub(super) fn device(header: &Header) -> Result<Option<(u32, u32)>> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (None, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        (None, None) => return Ok(None),
    };
    let of = |field| {
        let number = number("device number", field)?;
        u32::try_from(number).map_err(|_| corrupt(&format!("the device number {number} does not exist")))
    };
    Ok(Some((of(major)?, of(minor)?)))
}

/// Whether a header has the checksum of its bytes, its own eight taken for spaces.
pub(super) fn has_checksum(header: &[u8; BLOCK]) -> bool {
    let sum = header[..148].iter().chain(&header[156..]).map(|byte| u64::from(*byte)).sum::<u64>() + 8 * 32;
    number("checksum", &header[148..156]).is_ok_and(|said| said == sum)
}

/// Whether a tar archive can begin with this block: a header, or the zeros of an empty one.
pub fn begins_archive(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|byte| *byte == 0) || has_checksum(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256_or_blank() {
        let read = |field: &[u8]| number("size", field).ok();
        assert_eq!(read(b"0000644\0"), Some(0o644));
        assert_eq!(read(b"   644 \0"), Some(0o644));
        assert_eq!(read(b"\0\0  17\0x"), Some(0o17));
        for blank in [&b""[..], b"\0\0\0", b"   \0", b"        "] {
            assert_eq!(read(blank), Some(0), "{blank:?}");
        }
        assert_eq!(read(b"\x80\0\0\0\x11\x22\x33\x44"), Some(0x1122_3344));
        assert_eq!(read(b"\x81\0\0\0\0\0\0\0"), Some(1 << 56));
        assert_eq!(read(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(2 << 32));
        assert_eq!(read(&[0xFF; 12]), Some(u64::MAX));
        for bad in [&b"8"[..], b"-1", b"+1", b"1 1", b"\x1b[31m", b"7777777777777777777777777"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        let said = number("uid", b"\x1b[31m").unwrap_err().to_string();
        assert_eq!(said, "the uid of a tar header is \"\\u{1b}[31m\", no number");
    }
}
