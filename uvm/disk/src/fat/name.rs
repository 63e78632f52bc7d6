//! Long names and the short names that stand for them.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Error, ErrorKind, Result};

/// Base and extension, padded with spaces.
pub(super) type ShortName = [u8; 11];

const MAX_UNITS: usize = 255;
const MAX_TAIL: u32 = 999_999;

/// What a name becomes in a directory.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) short: ShortName,
    /// The long name in UTF-16; empty where the short name says it all.
    pub(super) long: Vec<u16>,
}

/// The names taken in one directory.
#[derive(Debug, Default)]
pub(super) struct NameSpace {
    shorts: BTreeSet<ShortName>,
    /// Long names without case, as FAT compares them.
    folded: BTreeSet<String>,
    /// The last numeric tail given out for a base.
    tails: BTreeMap<ShortName, u32>,
}

/// How FAT compares names.
pub(super) fn fold(name: &str) -> String {
    name.to_uppercase()
}

fn invalid(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("FAT name {name:?}: {why}"))
}

fn check(name: &str) -> Result<()> {
    if name.is_empty() || name == "." || name == ".." {
        return Err(invalid(name, "not a name"));
    }
    if name.encode_utf16().count() > MAX_UNITS {
        return Err(invalid(name, "longer than 255 UTF-16 units"));
    }
    if name.chars().any(|c| c < ' ' || c == '\x7f' || "\"*/:<>?\\|".contains(c)) {
        return Err(invalid(name, "holds a character that FAT forbids"));
    }
    if name.ends_with(['.', ' ']) || name.starts_with(' ') {
        return Err(invalid(name, "begins with a space or ends with a space or a dot"));
    }
    Ok(())
}

/// Whether a byte may stand in a short name or a label.
pub(super) fn is_short_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'()-@^_`{}~".contains(&byte)
}

/// The short form of `name`, and whether that lost anything but case.
fn short_form(name: &str) -> (ShortName, bool) {
    let mut lossy = false;
    let stem = name.trim_start_matches('.');
    lossy |= stem.len() != name.len();
    let (base, extension) = stem.rsplit_once('.').unwrap_or((stem, ""));
    let mut short = [b' '; 11];
    for (part, range) in [(base, 0..8), (extension, 8..11)] {
        let field = &mut short[range];
        let mut used = 0;
        for c in part.chars() {
            let c = c.to_ascii_uppercase();
            if c == ' ' || c == '.' {
                lossy = true;
                continue;
            }
            let byte = u8::try_from(c).ok().filter(|byte| is_short_byte(*byte));
            lossy |= byte.is_none() || used == field.len();
            if used < field.len() {
                field[used] = byte.unwrap_or(b'_');
                used += 1;
            }
        }
    }
    if short[0] == b' ' {
        short[0] = b'_';
        lossy = true;
    }
    (short, lossy)
}

/// `base` with `~number` behind as many of its characters as fit.
fn with_tail(base: &ShortName, number: u32) -> ShortName {
    let tail = format!("~{number}");
    let used = base[..8].iter().position(|b| *b == b' ').unwrap_or(8);
    let keep = used.min(8 - tail.len());
    let mut short = *base;
    short[..8].fill(b' ');
    short[..keep].copy_from_slice(&base[..keep]);
    short[keep..keep + tail.len()].copy_from_slice(tail.as_bytes());
    short
}

/// `NAME.EXT` as a short name is shown.
pub(super) fn short_to_string(short: &ShortName) -> String {
    let part = |bytes: &[u8]| -> String {
        let text: String = bytes
            .iter()
            .map(|b| if b.is_ascii() { char::from(*b) } else { char::REPLACEMENT_CHARACTER })
            .collect();
        text.trim_end_matches(' ').to_owned()
    };
    let (base, extension) = (part(&short[..8]), part(&short[8..]));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

impl NameSpace {
    /// Takes a name, and finds it a short one.
    pub(super) fn take(&mut self, name: &str) -> Result<Names> {
        check(name)?;
        let exists = || Error::new(ErrorKind::Exists, format!("FAT name {name:?} is taken"));
        let folded = fold(name);
        if self.folded.contains(&folded) {
            return Err(exists());
        }
        let (form, lossy) = short_form(name);
        let short = if lossy {
            self.alias(&form)
                .ok_or_else(|| Error::new(ErrorKind::NoSpace, format!("no short name left for {name:?}")))?
        } else {
            // A name that is the alias of another one cannot be told from it.
            if self.shorts.contains(&form) {
                return Err(exists());
            }
            form
        };
        self.shorts.insert(short);
        self.folded.insert(folded);
        let long = if !lossy && short_to_string(&short) == name {
            Vec::new()
        } else {
            name.encode_utf16().collect()
        };
        Ok(Names { short, long })
    }

    fn alias(&mut self, form: &ShortName) -> Option<ShortName> {
        let last = self.tails.get(form).copied().unwrap_or(0);
        let (number, short) = (last + 1..=MAX_TAIL)
            .map(|number| (number, with_tail(form, number)))
            .find(|(_, short)| !self.shorts.contains(short))?;
        self.tails.insert(*form, number);
        Some(short)
    }
}
