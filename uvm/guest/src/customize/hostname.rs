//! `/etc/hostname` and the line of `/etc/hosts` that makes the name resolve without a network.

use super::{Guest, absolute, invalid, lines};
use crate::error::{Error, ErrorKind, Result};
use crate::tree::{Kind, resolve, resolve_parent};

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
    check_hosts(guest)?;
    let contents = format!("{hostname}\n").into_bytes();
    let path = resolve_parent(guest.tree, &absolute("/etc/hostname")?)?;
    match guest.tree.metadata(&path)?.map(|metadata| metadata.kind) {
        // An installed machine's file keeps its mode and its label.
        Some(Kind::File { .. }) => guest.edit("/etc/hostname", 0o644, &mut |_| Ok(contents.clone()))?,
        _ => guest.write("/etc/hostname", 0o644, &contents)?,
    }
    let short = hostname.split('.').next().unwrap_or(hostname);
    let names = if short == hostname { hostname.to_owned() } else { format!("{hostname} {short}") };
    let ours = format!("127.0.1.1\t{names}");
    guest.edit("/etc/hosts", 0o644, &mut |old| Ok(hosts(old, &ours)))
}

/// The second file is looked at before the first is written, or a machine would be left with two names.
fn check_hosts(guest: &Guest<'_>) -> Result<()> {
    guest.read("/etc/hosts")?;
    let path = resolve(guest.tree, &absolute("/etc/hosts")?)?;
    let parent = path.parent().unwrap_or_default();
    // What is missing at the very beginning is made: an image may have no /etc yet.
    let made = parent == absolute("/etc")?;
    if made || guest.tree.metadata(&parent)?.is_some() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, format!("/etc/hosts leads to {path}, where there is no directory")))
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
    use crate::memory::MemoryTree;
    use crate::path::GuestPath;
    use crate::tree::{Attributes, GuestTree, Timestamp, create_dir_all, write_bytes};

    const AT: Attributes =
        Attributes { mode: 0o600, uid: 5, gid: 6, mtime: Timestamp { seconds: 1, nanoseconds: 0 } };

    fn p(path: &str) -> GuestPath {
        GuestPath::absolute(path).unwrap()
    }

    fn set_in(tree: &mut MemoryTree) -> Result<()> {
        set(&mut Guest { tree, timestamp: Timestamp::default() }, "web-2.example")
    }

    #[test]
    fn an_installed_machine_keeps_mode_owner_and_label() {
        let mut tree = MemoryTree::new();
        create_dir_all(&mut tree, &p("/etc"), AT).unwrap();
        write_bytes(&mut tree, &p("/etc/hostname"), AT, b"web-1\n").unwrap();
        let label = (b"security.selinux".to_vec(), b"system_u:object_r:hostname_etc_t:s0".to_vec());
        tree.set_xattr(&p("/etc/hostname"), &label.0, &label.1).unwrap();
        set_in(&mut tree).unwrap();
        assert_eq!(tree.read(&p("/etc/hostname"), 99).unwrap(), b"web-2.example\n");
        assert_eq!(tree.xattrs(&p("/etc/hostname")).unwrap(), [label]);
        let attributes = tree.metadata(&p("/etc/hostname")).unwrap().unwrap().attributes;
        assert_eq!(attributes, Attributes { mtime: Timestamp::default(), ..AT });
    }

    #[test]
    fn a_hosts_file_that_cannot_be_written_is_found_before_the_name_is() {
        const NOWHERE: &[u8] = b"../../../../somewhere/else/hosts";
        for prepare in [
            (|tree| tree.symlink(&p("/etc/hosts"), NOWHERE, AT)) as fn(&mut MemoryTree) -> Result<()>,
            |tree| tree.create_dir(&p("/etc/hosts"), AT),
            |tree| tree.symlink(&p("/etc/hosts"), b"hosts", AT),
        ] {
            let mut tree = MemoryTree::new();
            create_dir_all(&mut tree, &p("/etc"), AT).unwrap();
            write_bytes(&mut tree, &p("/etc/hostname"), AT, b"web-1\n").unwrap();
            prepare(&mut tree).unwrap();
            set_in(&mut tree).unwrap_err();
            assert_eq!(tree.read(&p("/etc/hostname"), 99).unwrap(), b"web-1\n");
        }
        set_in(&mut MemoryTree::new()).unwrap();
    }

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
