//! PAX extended header records (POSIX.1-2017 `pax`, "pax Header Block").

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::acl::acl;
use super::archive::{corrupt, unsupported};
use crate::error::{Error, ErrorKind, Result};
use crate::path::printable;
use crate::tree::Timestamp;

/// Extended attributes of one entry: more than any file system's block has room for.
const MAX_XATTRS: usize = 1000;

/// What PAX records and GNU long names say about the entry after them.
#[derive(Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_version: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse_real_size: Option<u64>,
    /// Offset and length in turn: PAX sparse 0.0 and 0.1.
    pub(super) sparse_map: Option<Vec<u64>>,
    /// As libarchive says them, for those that say nothing else.
    other_xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// ACLs whose text means nothing here, and why: no matter where the bytes are said, too.
    unreadable: Vec<(&'static [u8], Error)>,
}

impl Extended {
    /// Takes one PAX record in.
    pub(super) fn pax(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        // An empty value takes an earlier one back (POSIX); an extended attribute may really be empty.
        let present = (!value.is_empty()).then(|| value.to_vec());
        let number = || if value.is_empty() { Ok(None) } else { decimal(value).map(Some) };
        match key {
            b"path" => self.path = present,
            b"linkpath" => self.link = present,
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(pax_time(value)?) },
            b"GNU.sparse.name" => self.sparse_name = present,
            b"GNU.sparse.realsize" => self.sparse_real_size = number()?,
            b"GNU.sparse.major" => {
                self.sparse_version.get_or_insert_default().0 = value.to_vec();
            }
            b"GNU.sparse.minor" => {
                self.sparse_version.get_or_insert_default().1 = value.to_vec();
            }
            b"GNU.sparse.size" => self.sparse_real_size = number()?,
            // A count of what follows, which speaks for itself.
            b"GNU.sparse.numblocks" => self.sparse_map = Some(Vec::new()),
            b"GNU.sparse.offset" => self.sparse_number(value, 0)?,
            b"GNU.sparse.numbytes" => self.sparse_number(value, 1)?,
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').filter(|_| !value.is_empty());
                // An extended header, which the caller limits, holds fewer numbers than bytes.
                self.sparse_map = Some(numbers.map(decimal).collect::<Result<_>>()?);
            }
            // GNU tar says it without the NUL that ends it.
            b"RHT.security.selinux" => {
                self.other_xattrs.push((b"security.selinux".to_vec(), [value, b"\0"].concat()));
            }
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(unsupported(format!("the PAX record {}", printable(key))));
            }
            b"SCHILY.realsize" => return Err(unsupported("a sparse file of star's own format".to_owned())),
            b"SCHILY.acl.access" => self.acl(b"system.posix_acl_access", value)?,
            b"SCHILY.acl.default" => self.acl(b"system.posix_acl_default", value)?,
            b"SCHILY.acl.ace" => return Err(unsupported("an ACL of NFS version 4".to_owned())),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((xattr_name(name)?, value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    self.other_xattrs.push((url_decoded(name)?, base64_decoded(value)?));
                }
            }
        }
        Ok(())
    }

    /// PAX sparse 0.0: offsets and lengths in turn, each a record of its own.
    fn sparse_number(&mut self, value: &[u8], turn: usize) -> Result<()> {
        let map = self.sparse_map.get_or_insert_default();
        if map.len() % 2 != turn {
            return Err(corrupt("offsets and lengths of a PAX sparse map do not take turns"));
        }
        map.push(decimal(value)?);
        Ok(())
    }

    fn acl(&mut self, name: &'static [u8], text: &[u8]) -> Result<()> {
        match acl(text) {
            Ok(Some(value)) => self.other_xattrs.push((name.to_vec(), value)),
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Unsupported => self.unreadable.push((name, error)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The extended attributes. Archivers say some in two ways; `SCHILY.xattr` has the bytes themselves.
    pub(super) fn into_xattrs(mut self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let said: BTreeSet<Vec<u8>> = self.xattrs.iter().map(|(name, _)| name.clone()).collect();
        if let Some((_, error)) = self.unreadable.into_iter().find(|(name, _)| !said.contains(*name)) {
            return Err(error);
        }
        self.xattrs.extend(self.other_xattrs.into_iter().filter(|(name, _)| !said.contains(name)));
        if self.xattrs.len() > MAX_XATTRS {
            let count = self.xattrs.len();
            return Err(Error::new(ErrorKind::TooLarge, format!("{count} extended attributes")));
        }
        Ok(self.xattrs)
    }
}

/// libarchive's name of an attribute: every unusual byte as `%XX`.
fn url_decoded(encoded: &[u8]) -> Result<Vec<u8>> {
    let mut name = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                name.push(byte);
                rest = &tail[2..];
            }
            None => {
                name.push(*first);
                rest = tail;
            }
        }
    }
    check_xattr_name(name)
}

/// libarchive leaves the padding out.
fn base64_decoded(text: &[u8]) -> Result<Vec<u8>> {
    let end = text.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    STANDARD_NO_PAD.decode(&text[..end]).map_err(|_| corrupt("an extended attribute that is not base64"))
}

/// GNU tar writes `=` and `%` in the name of an attribute as `%3D` and `%25`.
fn xattr_name(encoded: &[u8]) -> Result<Vec<u8>> {
    let mut name = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((first, tail)) = rest.split_first() {
        let (byte, after) = match rest {
            [b'%', b'3', b'D', after @ ..] => (b'=', after),
            [b'%', b'2', b'5', after @ ..] => (b'%', after),
            _ => (*first, tail),
        };
        name.push(byte);
        rest = after;
    }
    check_xattr_name(name)
}

fn check_xattr_name(name: Vec<u8>) -> Result<Vec<u8>> {
    if name.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err(corrupt(&format!("the extended attribute's name {} is impossible", printable(&name))));
    }
    Ok(name)
}

/// For a header that speaks of every entry after it: none that we know of needs one.
pub(super) fn refuse_global(key: &[u8], _value: &[u8]) -> Result<()> {
    match key {
        // A remark, such as git's commit id.
        b"comment" => Ok(()),
        _ => Err(unsupported(format!("{} in a global PAX header", printable(key)))),
    }
}

/// Takes a PAX record's key and value.
type Record<'r> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'r;

/// Calls `each` for every `length key=value\n`. Values are any bytes: only the length says where one ends.
pub(super) fn pax_records(mut records: &[u8], each: &mut Record<'_>) -> Result<()> {
    while !records.is_empty() {
        let malformed = || corrupt("a malformed PAX record");
        let space = records.iter().take(21).position(|b| *b == b' ').ok_or_else(malformed)?;
        let length = usize::try_from(decimal(&records[..space])?).map_err(|_| malformed())?;
        let record = records.get(space + 1..length).ok_or_else(malformed)?;
        let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
        each(&record[..equals], &record[equals + 1..])?;
        records = &records[length..];
    }
    Ok(())
}

pub(super) fn decimal(digits: &[u8]) -> Result<u64> {
    std::str::from_utf8(digits)
        .ok()
        .filter(|d| d.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|d| d.parse().ok())
        .ok_or_else(|| corrupt(&format!("{} is not a number", printable(digits))))
}

/// `[-]seconds[.fraction]`: a decimal number, so `-1.5` is one and a half seconds before 1970.
fn pax_time(value: &[u8]) -> Result<Timestamp> {
    let (negative, magnitude) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let dot = magnitude.iter().position(|b| *b == b'.').unwrap_or(magnitude.len());
    let out_of_range = || corrupt(&format!("the time {} is out of range", printable(value)));
    let seconds = i64::try_from(decimal(&magnitude[..dot])?).map_err(|_| out_of_range())?;
    let mut nanoseconds = 0;
    let fraction = magnitude.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(corrupt(&format!("the time {} is not a number", printable(value))));
    }
    for place in 0..9 {
        nanoseconds = nanoseconds * 10 + u32::from(fraction.get(place).map_or(0, |d| d - b'0'));
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds },
        (true, _) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn times_are_decimal_numbers() {
        let time = |text: &str| pax_time(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(time("12.5").unwrap(), (12, 500_000_000));
        assert_eq!(time("12.1234567899").unwrap(), (12, 123_456_789));
        assert_eq!(time("-1.5").unwrap(), (-2, 500_000_000));
        assert_eq!(time("-3").unwrap(), (-3, 0));
        for bad in ["", "-", "x", "1.x", "99999999999999999999"] {
            assert_eq!(time(bad).unwrap_err().kind(), ErrorKind::Corrupt, "{bad}");
        }
    }

    #[test]
    fn a_pax_value_may_hold_newlines() {
        let mut seen = Vec::new();
        let mut keep = |key: &[u8], value: &[u8]| {
            seen.push((key.to_vec(), value.to_vec()));
            Ok(())
        };
        pax_records(b"10 a=1\n2=\n\n8 b=xy\n\n", &mut keep).unwrap_err();
        pax_records(b"10 a=1\n2=\n7 b=xy\n", &mut keep).unwrap();
        assert_eq!(seen.last().unwrap(), &(b"b".to_vec(), b"xy".to_vec()));
        for bad in [&b"5 a=1"[..], b"999 a=1\n", b"x a=1\n", b"3 a\n", b"0 \n"] {
            assert_eq!(pax_records(bad, &mut |_, _| Ok(())).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn names_of_attributes_are_decoded() {
        assert_eq!(xattr_name(b"user.a%3Db%25c%2").unwrap(), b"user.a=b%c%2");
        assert_eq!(url_decoded(b"user.a%3db%C3%A4%2").unwrap(), b"user.a=b\xC3\xA4%2");
        assert_eq!(base64_decoded(b"AP9h").unwrap(), b"\0\xFFa");
        assert_eq!(base64_decoded(b"YQ==").unwrap(), base64_decoded(b"YQ").unwrap());
        assert!(base64_decoded(b"!").is_err());
        assert!(xattr_name(b"").is_err() && xattr_name(&[b'a'; 256]).is_err());
    }
}
