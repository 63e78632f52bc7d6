//! `/etc/hostname` and the line of `/etc/hosts` that makes the name resolve without a network.

use super::{Guest, invalid, lines};
use crate::error::Result;

/// RFC 1123 section 2.1, and the 64 bytes that the kernel keeps.
pub(super) fn validate(hostname: &str) -> Result<()> {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if hostname.len() > 64 || !hostname.split('.').all(label) {
        return Err(invalid("hostname", hostname, "is no host name after RFC 1123"));
    }
    Ok(())
}

pub(super) fn set(guest: &mut Guest<'_>, hostname: &str) -> Result<()> {
    guest.write("/etc/hostname", 0o644, format!("{hostname}\n").as_bytes())?;
    let short = hostname.split('.').next().unwrap_or(hostname);
    let names = if short == hostname { hostname.to_owned() } else { format!("{hostname} {short}") };
    let ours = format!("127.0.1.1\t{names}");
    guest.edit("/etc/hosts", 0o644, &mut |old| Ok(hosts(old, &ours)))
}

/// Replaces the 127.0.1.1 line, or adds it after 127.0.0.1; an empty file gets the loopback lines too.
fn hosts(old: &[u8], ours: &str) -> Vec<u8> {
    let address = |line: &[u8]| -> Vec<u8> {
        line.split(|b| b.is_ascii_whitespace()).next().unwrap_or_default().to_vec()
    };
    if lines::lines(old).next().is_none() {
        return format!("127.0.0.1\tlocalhost\n{ours}\n::1\tlocalhost ip6-localhost ip6-loopback\n")
            .into_bytes();
    }
    let mut kept: Vec<&[u8]> =
        old.split_inclusive(|b| *b == b'\n').filter(|line| address(line) != b"127.0.1.1").collect();
    let ours = format!("{ours}\n");
    let at = kept.iter().rposition(|line| address(line) == b"127.0.0.1").map_or(0, |i| i + 1);
    if at > 0 && !kept[at - 1].ends_with(b"\n") {
        kept.insert(at, b"\n");
        kept.insert(at + 1, ours.as_bytes());
    } else {
        kept.insert(at, ours.as_bytes());
    }
    kept.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_after_rfc_1123() {
        for good in ["a", "web-1", "db.example.org", "3com"] {
            validate(good).unwrap();
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "a..b", "a_b", "a b", "a\n", "ä", long.as_str()] {
            assert!(validate(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hosts_keeps_its_other_lines() {
        let ours = "127.0.1.1\tnew";
        let old = b"127.0.0.1 localhost\n127.0.1.1 old\n# x\n10.0.0.1 peer";
        assert_eq!(hosts(old, ours), b"127.0.0.1 localhost\n127.0.1.1\tnew\n# x\n10.0.0.1 peer");
        assert_eq!(hosts(b"127.0.0.1 localhost", ours), b"127.0.0.1 localhost\n127.0.1.1\tnew\n");
        assert!(hosts(b"", ours).starts_with(b"127.0.0.1\tlocalhost\n127.0.1.1\tnew\n"));
    }
}
