//! Sizes, rates, times and limits, as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::{DiskRequest, IoLimits, Millis};

const KIB: u64 = 1 << 10;
/// Binary units, the largest first.
const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", KIB)];
const MIB: u64 = 1 << 20;
/// The last moment that RFC 3339 has words for: the end of the year 9999.
const LAST_TIME: Millis = 253_402_300_799_999;

/// What stands where there is nothing to show.
pub(super) const NOTHING: &str = "-";

/// A number and its binary unit, in bytes.
fn parse_bytes(text: &str) -> Option<u64> {
    let (digits, unit) = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// `4GiB`, `512MiB`, or a number of MiB.
pub(super) fn parse_mib(text: &str) -> Result<u64, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match parse_bytes(text) {
        Some(bytes) if bytes % MIB == 0 => Ok(bytes / MIB),
        Some(_) => Err("a size is a whole number of MiB".to_owned()),
        None => Err("a size is written as 512MiB, 4GiB or 1TiB, or as a number of MiB".to_owned()),
    }
}

/// A time as `90s`, `30m`, `12h`, `7d`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; a time is written as 90s, 30m, 12h or 7d"))
}

/// A word of the API, as `anti-affinity`.
pub(super) fn parse_word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|error| error.to_string())
}

/// `KEY=VALUE`.
pub(super) fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is expected".to_owned()),
    }
}

/// What is said of a disk: `40GiB,500iops,100MiB/s`, each part once and none needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DiskWords {
    pub(super) size_mib: Option<u64>,
    operations_per_second: Option<u64>,
    bytes_per_second: Option<u64>,
}

impl DiskWords {
    /// The limits that were said, over those there are.
    pub(super) fn limits(&self, now: IoLimits) -> IoLimits {
        IoLimits {
            bytes_per_second: self.bytes_per_second.unwrap_or(now.bytes_per_second),
            operations_per_second: self.operations_per_second.unwrap_or(now.operations_per_second),
        }
    }

    /// Whether any limit was said.
    pub(super) fn limited(&self) -> bool {
        self.operations_per_second.is_some() || self.bytes_per_second.is_some()
    }

    /// A disk of a new instance.
    pub(super) fn request(&self) -> DiskRequest {
        let io_limits = self.limits(IoLimits::default());
        DiskRequest { size_mib: self.size_mib.unwrap_or_default(), name: None, io_limits }
    }
}

pub(super) fn parse_disk_words(text: &str) -> Result<DiskWords, String> {
    let mut words = DiskWords::default();
    for part in text.split(',') {
        let (slot, value) = if let Some(number) = part.strip_suffix("iops") {
            let number =
                number.parse().map_err(|_| format!("{part:?}: operations are written as 500iops"))?;
            (&mut words.operations_per_second, number)
        } else if let Some(rate) = part.strip_suffix("/s") {
            let rate = rate.parse().ok().or_else(|| parse_bytes(rate));
            let rate = rate.ok_or_else(|| format!("{part:?}: a rate is written as 100MiB/s"))?;
            (&mut words.bytes_per_second, rate)
        } else {
            (&mut words.size_mib, parse_mib(part).map_err(|error| format!("{part:?}: {error}"))?)
        };
        if slot.replace(value).is_some() {
            return Err(format!("{part:?}: that was said before"));
        }
    }
    Ok(words)
}

/// A disk of a new instance, whose size must be said.
pub(super) fn parse_new_disk(text: &str) -> Result<DiskWords, String> {
    let words = parse_disk_words(text)?;
    match words.size_mib {
        Some(_) => Ok(words),
        None => Err("the size is missing, as in 20GiB,500iops,100MiB/s".to_owned()),
    }
}

/// `DISK:WORDS`.
pub(super) fn parse_disk_change(text: &str) -> Result<(String, DiskWords), String> {
    match text.rsplit_once(':') {
        Some((disk, words)) if !disk.is_empty() => Ok((disk.to_owned(), parse_disk_words(words)?)),
        _ => Err("DISK:SIZE is expected, or DISK:500iops, or DISK:100MiB/s".to_owned()),
    }
}

/// MiB, exactly, in a form that may be typed in again.
pub(super) fn mib(size: u64) -> String {
    let whole = |(_, unit): &&(&str, u64)| size.is_multiple_of(unit / MIB);
    match UNITS[..2].iter().find(whole).filter(|_| size > 0) {
        Some((name, unit)) => format!("{}{name}", size / (unit / MIB)),
        None => format!("{size}MiB"),
    }
}

/// Bytes, about.
pub(super) fn bytes(size: u64) -> String {
    scaled(size as f64)
}

fn scaled(size: f64) -> String {
    match UNITS.iter().find(|(_, unit)| size >= *unit as f64) {
        Some((name, unit)) => format!("{:.1}{name}", size / *unit as f64),
        None => format!("{size:.0}B"),
    }
}

/// A value by the unit at the end of its metric's name.
pub(super) fn measured(metric: &str, value: f64) -> String {
    if metric.ends_with("_ratio") {
        format!("{:.1}%", value * 100.0)
    } else if metric.ends_with("bytes_per_second") {
        format!("{}/s", scaled(value))
    } else if metric.ends_with("_bytes") {
        scaled(value)
    } else if metric.ends_with("_per_second") {
        format!("{value:.1}/s")
    } else {
        format!("{value:.0}")
    }
}

/// RFC 3339, UTC.
pub(super) fn time(at: Millis) -> String {
    match at {
        0 => NOTHING.to_owned(),
        1..=LAST_TIME => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(at)).to_string()
        }
        _ => format!("{at}ms"),
    }
}

/// The time, as this machine has it.
pub(super) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(Millis::MAX)
}

/// How long ago that was: `3m`.
pub(super) fn age(now: Millis, at: Millis) -> String {
    const SECONDS: [(u64, &str); 3] = [(86_400, "d"), (3_600, "h"), (60, "m")];
    if at == 0 {
        return NOTHING.to_owned();
    }
    let seconds = now.saturating_sub(at) / 1_000;
    match SECONDS.iter().find(|(unit, _)| seconds >= *unit) {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

/// A stretch of time: `0.2s`, `3m10s`.
pub(super) fn stretch(millis: u64) -> String {
    let seconds = millis / 1_000;
    match seconds {
        0..60 => format!("{seconds}.{}s", millis % 1_000 / 100),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// The API's word for it.
pub(super) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => NOTHING.to_owned(),
    }
}

pub(super) fn yes_or_no(so: bool) -> &'static str {
    if so { "yes" } else { "no" }
}

/// What may stand on a terminal: guests and nodes put in words of their own, and must not command it.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_exactly_or_not_at_all() {
        for (text, size) in
            [("4096", 4_096), ("512MiB", 512), ("4GiB", 4_096), ("2TiB", 2 << 20), ("2048KiB", 2)]
        {
            assert_eq!(parse_mib(text), Ok(size), "{text}");
        }
        for wrong in ["", "GiB", "4G", "4GB", "1.5GiB", "-1", "4 GiB", "1KiB", "99999999999999999TiB", "4gib"]
        {
            assert!(parse_mib(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_shown_as_they_may_be_typed() {
        for (size, text) in
            [(0, "0MiB"), (512, "512MiB"), (1_536, "1536MiB"), (4_096, "4GiB"), (3 << 20, "3TiB")]
        {
            assert_eq!(mib(size), text);
            assert_eq!(parse_mib(text), Ok(size));
        }
        let about = [
            (0, "0B"),
            (1_023, "1023B"),
            (1_536, "1.5KiB"),
            (3 << 30, "3.0GiB"),
            (u64::MAX, "16777216.0TiB"),
        ];
        for (size, text) in about {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn a_disk_is_said_in_words() {
        let words = parse_disk_words("40GiB,500iops,100MiB/s").unwrap();
        assert_eq!(words.size_mib, Some(40_960));
        let all = words.limits(IoLimits::default());
        assert_eq!((all.operations_per_second, all.bytes_per_second), (500, 100 << 20));
        let one = parse_disk_words("0iops").unwrap();
        assert!(one.limited() && one.size_mib.is_none());
        let kept = one.limits(all);
        assert_eq!(
            (kept.operations_per_second, kept.bytes_per_second),
            (0, 100 << 20),
            "the other limit stays"
        );
        for wrong in ["", "1GiB,2GiB", "iops", "5 iops", "x/s", "1GiB,"] {
            assert!(parse_disk_words(wrong).is_err(), "{wrong}");
        }
        assert!(parse_new_disk("500iops").is_err());
        assert_eq!(parse_disk_change("d:1:2GiB").unwrap().0, "d:1");
        assert!(parse_disk_change("2GiB").is_err() && parse_disk_change(":2GiB").is_err());
    }

    #[test]
    fn times_have_words_up_to_the_end_of_time() {
        assert_eq!(time(1_700_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(time(LAST_TIME), "9999-12-31T23:59:59Z");
        assert_eq!(time(u64::MAX), format!("{}ms", u64::MAX));
        let now = 10 * 86_400_000;
        for (ago, text) in
            [(0, "0s"), (59_999, "59s"), (60_000, "1m"), (3_600_000, "1h"), (172_800_000, "2d")]
        {
            assert_eq!(age(now, now - ago), text);
        }
        assert_eq!(age(1, 2), "0s", "clocks differ");
        for (millis, text) in [(0, "0.0s"), (1_250, "1.2s"), (61_000, "1m01s"), (3_660_000, "1h01m")] {
            assert_eq!(stretch(millis), text);
        }
    }

    #[test]
    fn values_are_shown_in_their_metrics_unit() {
        assert_eq!(measured("cpu_used_ratio", 0.256), "25.6%");
        assert_eq!(measured("disk_read_bytes_per_second", 2_097_152.0), "2.0MiB/s");
        assert_eq!(measured("memory_used_bytes", 1_073_741_824.0), "1.0GiB");
        assert_eq!(measured("disk_reads_per_second", 2.54), "2.5/s");
        assert_eq!(measured("domains_running", 3.0), "3");
    }

    #[test]
    fn words_of_the_api_are_read_and_written() {
        use crate::model::{GroupRule, JobKind};
        assert_eq!(parse_word::<GroupRule>("anti-affinity"), Ok(GroupRule::AntiAffinity));
        assert!(parse_word::<GroupRule>("x").unwrap_err().contains("fault-domain"));
        assert_eq!(word(&JobKind::StartUtilityVm), "start-utility-vm");
    }

    #[test]
    fn nobody_commands_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\r\n\u{9b}c"), "a [2Jb \n c");
    }
}
