//! Sizes as people write and read them.

/// Bytes: a number with nothing, `K`, `M`, `G` or `T` (powers of 1024, as mkfs takes them), or `KiB`, `MiB`, …
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.strip_suffix("iB").unwrap_or(unit) {
        "" if unit.is_empty() => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("bytes, or a number with K, M, G or T".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "bytes, or a number with K, M, G or T".to_owned())?;
    let bytes = number.checked_mul(1 << shift);
    bytes.filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or_else(|| "too large".to_owned())
}

/// With the unit that leaves at most four digits before the point.
pub(super) fn shown(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) if bytes.trailing_zeros() >= *shift => format!("{} {unit}", bytes >> shift),
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes) in
            [("512", 512), ("64K", 65_536), ("64M", 64 << 20), ("1GiB", 1 << 30), ("2T", 2 << 40)]
        {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "1MB", "-1", "1.5G", "iB", "9999999T", "18446744073709551615"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(shown(100), "100 bytes");
        assert_eq!(shown(64 << 30), "64 GiB");
        assert_eq!(shown(1536 << 10), "1.5 MiB");
    }
}
