//! Files whose data is told apart from their holes: whole blocks around the data, zeros where it ends within one.

use std::io::{self, Read};
use std::ops::Range;

/// A run of whole blocks (cut at the file's end) with data in each, and the data in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run<'d> {
    pub(super) bytes: Range<u64>,
    data: &'d [Range<u64>],
}

/// The runs of a file of `size` bytes with `data`, which is ascending, apart and inside it.
pub(super) fn runs(data: &[Range<u64>], size: u64, block_size: u64) -> impl Iterator<Item = Run<'_>> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let empty = rest.iter().take_while(|range| range.is_empty()).count();
        let from = &rest[empty..];
        let start = from.first()?.start / block_size * block_size;
        let (mut end, mut count) = (start, 0);
        for range in from {
            if !range.is_empty() {
                if range.start / block_size * block_size > end {
                    break;
                }
                end = range.end.checked_next_multiple_of(block_size).map_or(size, |end| end.min(size));
            }
            count += 1;
        }
        let (taken, after) = from.split_at(count);
        rest = after;
        Some(Run { bytes: start..end, data: taken })
    })
}

/// The bytes of a run, of which `contents` has the data.
pub(super) struct Padded<'r, 'd> {
    run: &'r Run<'d>,
    /// The next byte to give.
    position: u64,
    /// The first data that is not over.
    next: usize,
    contents: &'r mut dyn Read,
}

impl<'r, 'd> Padded<'r, 'd> {
    pub(super) fn new(run: &'r Run<'d>, contents: &'r mut dyn Read) -> Self {
        Self { run, position: run.bytes.start, next: 0, contents }
    }
}

impl Read for Padded<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.run.data.get(self.next).is_some_and(|data| data.end <= self.position) {
            self.next += 1;
        }
        let data = self.run.data.get(self.next).cloned().unwrap_or(self.run.bytes.end..self.run.bytes.end);
        let in_data = data.contains(&self.position);
        // An empty range may lie behind the run.
        let end = if in_data { data.end } else { data.start.min(self.run.bytes.end) };
        let wanted = usize::try_from(end - self.position).unwrap_or(usize::MAX).min(buf.len());
        let got = if in_data {
            self.contents.read(&mut buf[..wanted])?.min(wanted)
        } else {
            buf[..wanted].fill(0);
            wanted
        };
        self.position += got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(data: &[Range<u64>], size: u64) -> Vec<(Range<u64>, Vec<u8>)> {
        let bytes: Vec<u8> = (1..=200).collect();
        let mut contents = &bytes[..];
        let runs = runs(data, size, 8);
        runs.map(|run| {
            let mut all = Vec::new();
            Padded::new(&run, &mut contents).read_to_end(&mut all).expect("reads");
            (run.bytes.clone(), all)
        })
        .collect()
    }

    #[test]
    fn runs_are_whole_blocks_with_zeros_around_the_data() {
        assert_eq!(spread(&[], 100), []);
        assert_eq!(spread(&[5..5, 100..100], 100), []);
        assert_eq!(spread(&[3..5, 99..99], 100), [(0..8, vec![0, 0, 0, 1, 2, 0, 0, 0])]);
        let two = spread(&[3..5, 5..5, 6..7, 33..35], 35);
        assert_eq!(two, [(0..8, vec![0, 0, 0, 1, 2, 0, 3, 0]), (32..35, vec![0, 4, 5])]);
        let joined = spread(&[0..8, 8..9, 23..24], 100);
        assert_eq!(joined[0].0, 0..24, "blocks that touch are one run");
        assert_eq!(joined[0].1[8..], [9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10]);
    }
}
