//! The files of lines that describe accounts: every line that is not ours stays, byte for byte.

/// The fields of the line whose first field is `name`.
pub(super) fn fields_of<'f>(file: &'f [u8], name: &[u8], separator: u8) -> Option<Vec<&'f [u8]>> {
    lines(file)
        .map(|line| line.split(|b| *b == separator).collect())
        .find(|f: &Vec<&[u8]>| f.first() == Some(&name))
}

pub(super) fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|b| *b == b'\n').filter(|line| !line.is_empty())
}

/// The file with one more line; a last line without its newline gets one.
pub(super) fn append(file: &[u8], line: &[u8]) -> Vec<u8> {
    let mut out = file.to_vec();
    if !out.is_empty() && !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    out.extend_from_slice(line);
    out.push(b'\n');
    out
}

/// The file with `change` applied to the line whose first field is `name`.
pub(super) fn map_line(
    file: &[u8],
    name: &[u8],
    separator: u8,
    change: &dyn Fn(&[u8]) -> Vec<u8>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(file.len() + 64);
    for line in file.split_inclusive(|b| *b == b'\n') {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        if text.split(|b| *b == separator).next() == Some(name) {
            out.extend_from_slice(&change(text));
            out.push(b'\n');
        } else {
            out.extend_from_slice(line);
        }
    }
    out
}

/// The smallest number from `from` on that no line has in field `field`, up to 60000, where the range that
/// systems give to people ends.
pub(super) fn free_id(file: &[u8], field: usize, from: u32) -> Option<u32> {
    let taken: std::collections::BTreeSet<u32> = lines(file)
        .filter_map(|line| line.split(|b| *b == b':').nth(field))
        .filter_map(|id| std::str::from_utf8(id).ok()?.parse().ok())
        .collect();
    (from..60_000).find(|id| !taken.contains(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_lines_stay_as_they_are() {
        let file = b"root:x:0\n# odd\n\nnobody:x:65534";
        assert_eq!(append(file, b"a:x:1"), b"root:x:0\n# odd\n\nnobody:x:65534\na:x:1\n");
        let mapped = map_line(file, b"root", b':', &|l| [l, b":more"].concat());
        assert_eq!(mapped, b"root:x:0:more\n# odd\n\nnobody:x:65534");
        assert_eq!(fields_of(file, b"nobody", b':').unwrap(), [&b"nobody"[..], b"x", b"65534"]);
        assert_eq!(free_id(b"a:x:1000:\nb:x:1002:\n", 2, 1000), Some(1001));
    }
}
