//! What `systemctl enable` does: the links that a unit's `[Install]` section asks for (systemd.unit(5)).

use std::collections::BTreeSet;

use super::{Guest, invalid};
use crate::error::{Error, ErrorKind, Result};
use crate::tree::{GuestTree, Timestamp};

/// Where the image's own units lie, in the order of their weight.
const UNIT_DIRECTORIES: [&str; 3] = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
/// A unit and those its `Also=` names, and theirs.
const MAX_UNITS: usize = 64;

/// Enables a unit, and those its `Also=` lines name. Returns the links made.
///
/// # Errors
/// [`ErrorKind::NotFound`] where the guest has no such unit.
pub fn enable_unit(tree: &mut dyn GuestTree, unit: &str, timestamp: Timestamp) -> Result<Vec<String>> {
    enable(&mut Guest { tree, timestamp }, unit)
}

/// The path of a unit's file, if it has one. A masked unit (a link to `/dev/null`) is looked through, for enabling
/// it is what was asked.
pub(super) fn find(guest: &Guest<'_>, unit: &str) -> Result<Option<String>> {
    check_name(unit)?;
    for directory in UNIT_DIRECTORIES {
        let path = format!("{directory}/{unit}");
        let is_file = crate::tree::resolved_metadata(guest.tree, &super::absolute(&path)?)?
            .is_some_and(|m| matches!(m.kind, crate::tree::Kind::File { .. }));
        if is_file {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

pub(super) fn enable(guest: &mut Guest<'_>, unit: &str) -> Result<Vec<String>> {
    let mut links = Vec::new();
    let mut pending = vec![unit.to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(unit) = pending.pop() {
        if seen.len() >= MAX_UNITS {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("{unit} and its Also= lines name too many units"),
            ));
        }
        if !seen.insert(unit.clone()) {
            continue;
        }
        let Some(path) = find(guest, &unit)? else {
            // systemctl only warns about an Also= that is not installed.
            if seen.len() > 1 {
                continue;
            }
            return Err(Error::new(ErrorKind::NotFound, format!("the guest has no unit {unit}")));
        };
        unmask(guest, &unit)?;
        let text = guest.read(&path)?;
        for (key, value) in install_section(&String::from_utf8_lossy(&text)) {
            check_name(&value)?;
            let link = match key.as_str() {
                "WantedBy" => format!("/etc/systemd/system/{value}.wants/{unit}"),
                "RequiredBy" => format!("/etc/systemd/system/{value}.requires/{unit}"),
                "Alias" if value != unit => format!("/etc/systemd/system/{value}"),
                "Also" => {
                    pending.push(value);
                    continue;
                }
                _ => continue,
            };
            guest.link(&link, &path)?;
            links.push(link);
        }
    }
    links.sort();
    Ok(links)
}

fn unmask(guest: &mut Guest<'_>, unit: &str) -> Result<()> {
    let path =
        crate::tree::resolve_parent(guest.tree, &super::absolute(&format!("/etc/systemd/system/{unit}"))?)?;
    let masked = guest.tree.metadata(&path)?.is_some_and(|m| m.kind == crate::tree::Kind::Symlink)
        && guest.tree.read_link(&path)? == b"/dev/null";
    if masked { guest.tree.remove(&path) } else { Ok(()) }
}

/// The assignments of `[Install]`, one value each; an empty value takes back those before it.
fn install_section(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[Install]";
        } else if let (true, false, Some((key, values))) =
            (inside, line.starts_with(['#', ';']), line.split_once('='))
        {
            let key = key.trim();
            if values.trim().is_empty() {
                found.retain(|(k, _)| k != key);
            }
            found.extend(values.split_whitespace().map(|value| (key.to_owned(), value.to_owned())));
        }
    }
    found
}

/// Units of a guest are hostile too: a name is one component, of the characters systemd allows.
fn check_name(unit: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    if unit.is_empty() || unit.len() > 255 || unit.starts_with('.') || !unit.bytes().all(allowed) {
        return Err(invalid("unit", unit, "is no name of a unit"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_install_section_counts() {
        let text = "[Unit]\nWantedBy=no\n[Install]\n# WantedBy=no\nWantedBy=a.target b.target\nAlias=x\nAlias=\nAlso=c.socket\n";
        let found = install_section(text);
        let pairs: Vec<_> = found.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(pairs, ["WantedBy=a.target", "WantedBy=b.target", "Also=c.socket"]);
    }

    #[test]
    fn a_unit_is_one_component() {
        for bad in ["", "../x", "a/b", ".hidden", "a b"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
