//! Long names and the short names that stand for them.

use std::collections::{HashMap, HashSet};

use super::directory::LONG_UNITS;
use crate::{Error, ErrorKind, Result};

/// Base and extension, padded with spaces.
pub(super) type ShortName = [u8; 11];

const MAX_UNITS: usize = 255;
/// Digits of a numeric tail.
const MAX_DIGITS: u32 = 6;

/// A name without case, as FAT compares names: character by character, none becoming two, and none becoming ASCII that
/// is not.
pub(super) fn fold(name: &str) -> String {
    name.chars().map(fold_char).collect()
}

fn fold_char(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_uppercase();
    }
    let mut upper = c.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(upper), None) if !upper.is_ascii() => upper,
        _ => c,
    }
}

fn invalid(name: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("FAT name {name:?}: {why}"))
}

/// Refuses what no directory of FAT can have, or what some systems would take for another name.
pub(super) fn check(name: &str) -> Result<()> {
    if name.is_empty() || name == "." || name == ".." {
        return Err(invalid(name, "not a name"));
    }
    if name.encode_utf16().count() > MAX_UNITS {
        return Err(invalid(name, "longer than 255 UTF-16 units"));
    }
    if let Some(c) = name.chars().find(|c| *c < ' ' || "\"*/:<>?\\|".contains(*c)) {
        return Err(invalid(name, &format!("{c:?} cannot be in it")));
    }
    if name.ends_with(['.', ' ']) {
        return Err(invalid(name, "ends with a space or a dot, which other systems leave out"));
    }
    Ok(())
}

/// Whether a byte may stand in a short name or a label.
fn is_short_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'()-@^_`{}~".contains(&byte)
}

/// A volume's label; `None` where it is empty.
pub(super) fn encode_label(label: &str) -> Result<Option<ShortName>> {
    let upper = label.to_ascii_uppercase();
    let fits = upper.len() <= 11 && upper.bytes().all(|b| b == b' ' || is_short_byte(b));
    if !fits || upper.starts_with(' ') {
        let context = format!(
            "FAT label {label:?}: at most 11 letters, digits, !#$%&'()-@^_`{{}}~, or spaces after them"
        );
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    let mut bytes = [b' '; 11];
    bytes[..upper.len()].copy_from_slice(upper.as_bytes());
    Ok((!upper.trim_end().is_empty()).then_some(bytes))
}

/// The short form of `name`, and whether that lost anything but case.
fn short_form(name: &str) -> (ShortName, bool) {
    let stem = name.trim_start_matches(['.', ' ']);
    let mut lossy = stem.len() != name.len();
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

/// Entries that the long form of a name takes; none where the short name says it all.
pub(super) fn long_entries(name: &str) -> u32 {
    let (short, lossy) = short_form(name);
    if !lossy && short_to_string(&short, 0) == name {
        return 0;
    }
    name.encode_utf16().count().div_ceil(LONG_UNITS) as u32
}

/// `NAME.EXT` as a short name is shown; `flags` (of byte 12, as Windows NT has them) make either part lower case.
pub(super) fn short_to_string(short: &ShortName, flags: u8) -> String {
    let part = |bytes: &[u8], lower: bool| -> String {
        let text: String = bytes
            .iter()
            .map(|b| if b.is_ascii() { char::from(*b) } else { char::REPLACEMENT_CHARACTER })
            .collect();
        let text = text.trim_end_matches(' ');
        if lower { text.to_ascii_lowercase() } else { text.to_owned() }
    };
    let (base, extension) = (part(&short[..8], flags & 0x08 != 0), part(&short[8..], flags & 0x10 != 0));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

/// The short names of one directory.
#[derive(Debug, Default)]
pub(super) struct ShortNames {
    taken: HashSet<ShortName>,
    /// The next tail to try for what stands before and behind it.
    tails: HashMap<ShortName, u32>,
}

impl ShortNames {
    /// Keeps free the names that are short ones by themselves.
    pub(super) fn new<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        let own = names.map(short_form).filter(|(_, lossy)| !lossy).map(|(short, _)| short);
        Self { taken: own.collect(), tails: HashMap::new() }
    }

    /// The short name of one of them: its own, or one with a numeric tail (`LONGNA~1.TXT`), counted from 1.
    pub(super) fn give(&mut self, name: &str) -> Result<ShortName> {
        let (form, lossy) = short_form(name);
        if !lossy {
            return Ok(form);
        }
        for digits in 1..=MAX_DIGITS {
            let stem = stem(&form, digits);
            let next = self.tails.entry(stem).or_insert(10u32.pow(digits - 1));
            while *next < 10u32.pow(digits) {
                let short = with_tail(&stem, *next);
                *next += 1;
                if self.taken.insert(short) {
                    return Ok(short);
                }
            }
        }
        Err(Error::new(ErrorKind::NoSpace, format!("no short name is left for {name:?}")))
    }
}

/// What of a short form stands beside a tail of so many digits.
fn stem(form: &ShortName, digits: u32) -> ShortName {
    let mut stem = *form;
    stem[7 - digits as usize..8].fill(b' ');
    stem
}

fn with_tail(stem: &ShortName, number: u32) -> ShortName {
    let mut short = *stem;
    let used = stem[..8].iter().position(|b| *b == b' ').unwrap_or(8);
    let tail = format!("~{number}");
    short[used..used + tail.len()].copy_from_slice(tail.as_bytes());
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shorts(names: &[&str]) -> Vec<String> {
        let mut shorts = ShortNames::new(names.iter().copied());
        names.iter().map(|name| short_to_string(&shorts.give(name).unwrap(), 0)).collect()
    }

    #[test]
    fn short_names_are_those_of_windows() {
        let names = [
            "longname one.text",
            "longname two.text",
            "LONGNA~1.TEX",
            "README",
            "read.me",
            "a.b.c",
            ".bashrc",
            "Größe.conf",
            "x y",
            "a+b",
            "trailing.longer",
            " lead",
            "no_extension_at_all",
            "日本語.txt",
        ];
        assert_eq!(
            shorts(&names),
            [
                "LONGNA~2.TEX",
                "LONGNA~3.TEX",
                "LONGNA~1.TEX",
                "README",
                "READ.ME",
                "AB~1.C",
                "BASHRC~1",
                "GR__E~1.CON",
                "XY~1",
                "A_B~1",
                "TRAILI~1.LON",
                "LEAD~1",
                "NO_EXT~1",
                "___~1.TXT",
            ]
        );
    }

    #[test]
    fn tails_grow_and_stay_apart() {
        // All of them end up with the same first character.
        let names: Vec<String> = (0..120_000).map(|i| format!("a{i:06} long.txt")).collect();
        let mut shorts = ShortNames::new(names.iter().map(String::as_str));
        let given: HashSet<ShortName> = names.iter().map(|name| shorts.give(name).unwrap()).collect();
        assert_eq!(given.len(), names.len());
    }

    #[test]
    fn case_is_folded_one_to_one() {
        assert_eq!(fold("straße ı ſ é ω ab"), "STRAßE ı ſ É Ω AB");
        assert_eq!(fold("ŉﬁ"), "ŉﬁ");
        assert_eq!(long_entries("FILE.TXT"), 0);
        assert_eq!((long_entries("file.txt"), long_entries("fourteen chars"), long_entries("😀")), (1, 2, 1));
    }
}
