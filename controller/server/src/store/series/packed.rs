//! Measurements of all subjects of a node at one time, packed into one row.
//!
//! ```text
//! row     subject*
//! subject number, length (LEB128), series*       numbers rise
//! series  1 byte: metric << 2 | form             the index counts up from 0 as long as the metric stays the same
//!         form 0: nothing  1: zero  2: one value for min, avg and max (2 bytes)  3: min, avg, max (6 bytes)
//! ```
//!
//! A value is 16 bits of the logarithmic kind: 7 bits of exponent and 9 of mantissa, so that it is off by at most a
//! thousandth from 2^-40 to 2^88, and the order of codes is the order of values.

/// Highest index kept: cores of a host.
pub(super) const INDEX_MAX: u16 = 1_023;
/// Bits of a double's mantissa that are dropped.
const DROPPED: u32 = 52 - 9;
/// What is subtracted from the rest so that 2^-40 is 0.
const BASE: i64 = (1_023 - 40) << 9;
/// A LEB128 number of 32 bits has at most five bytes.
const NUMBER_BYTES: u32 = 5;

/// A value's code. What is negative or no number has none.
pub(super) fn code(value: f64) -> Option<u16> {
    if !value.is_finite() || value < 0.0 {
        return None;
    }
    if value == 0.0 {
        return Some(0);
    }
    let rounded = ((value.to_bits() + (1 << (DROPPED - 1))) >> DROPPED).cast_signed() - BASE;
    u16::try_from(rounded.clamp(1, i64::from(u16::MAX))).ok()
}

/// A code's value.
pub(super) fn value(code: u16) -> f64 {
    if code == 0 { 0.0 } else { f64::from_bits((i64::from(code) + BASE).cast_unsigned() << DROPPED) }
}

/// Which series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Number of the subject on its node.
    pub(super) subject: u32,
    /// Number of the metric.
    pub(super) metric: u8,
    /// Which of several.
    pub(super) index: u16,
}

/// Codes of what was measured in a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) min: u16,
    pub(super) avg: u16,
    pub(super) max: u16,
}

impl Cell {
    /// One measurement.
    pub(super) fn one(code: u16) -> Self {
        Self { min: code, avg: code, max: code }
    }
}

/// A row of cells in order of their keys.
pub(super) fn pack(cells: impl IntoIterator<Item = (Key, Cell)>) -> Vec<u8> {
    let mut row = Vec::new();
    let mut series: Vec<u8> = Vec::new();
    let mut last: Option<Key> = None;
    let close = |row: &mut Vec<u8>, series: &mut Vec<u8>, subject: u32| {
        write_number(row, subject);
        write_number(row, u32::try_from(series.len()).expect("a subject has few series of few bytes"));
        row.append(series);
    };
    for (key, cell) in cells {
        if let Some(before) = last.filter(|before| before.subject != key.subject) {
            close(&mut row, &mut series, before.subject);
            last = None;
        }
        let next = match last {
            Some(before) if before.metric == key.metric => before.index + 1,
            _ => 0,
        };
        series.extend((next..key.index).map(|_| key.metric << 2));
        write_cell(&mut series, key.metric, cell);
        last = Some(key);
    }
    if let Some(before) = last {
        close(&mut row, &mut series, before.subject);
    }
    row
}

fn write_cell(series: &mut Vec<u8>, metric: u8, cell: Cell) {
    let flat = cell.min == cell.avg && cell.avg == cell.max;
    let (form, codes): (u8, &[u16]) = match cell {
        Cell { max: 0, .. } => (1, &[]),
        _ if flat => (2, &[cell.avg]),
        _ => (3, &[cell.min, cell.avg, cell.max]),
    };
    series.push(metric << 2 | form);
    codes.iter().for_each(|code| series.extend(code.to_le_bytes()));
}

fn write_number(row: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        row.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    row.push(number.to_le_bytes()[0]);
}

/// Shows the cells of a row, all or those of one subject, in order. `None` where the row makes no sense from some
/// place on.
pub(super) fn unpack(mut row: &[u8], wanted: Option<u32>, mut each: impl FnMut(Key, Cell)) -> Option<()> {
    while !row.is_empty() {
        let subject = read_number(&mut row)?;
        let length = usize::try_from(read_number(&mut row)?).ok()?;
        let (mut series, rest) = row.split_at_checked(length)?;
        row = rest;
        if wanted.is_some_and(|wanted| wanted != subject) {
            continue;
        }
        let (mut metric, mut index) = (0, 0);
        while let Some((head, rest)) = series.split_first() {
            series = rest;
            index = if head >> 2 == metric { index + 1 } else { 0 };
            metric = head >> 2;
            if index > INDEX_MAX {
                return None;
            }
            let cell = read_cell(head & 3, &mut series)?;
            if let Some(cell) = cell {
                each(Key { subject, metric, index }, cell);
            }
        }
    }
    Some(())
}

fn read_cell(form: u8, series: &mut &[u8]) -> Option<Option<Cell>> {
    let mut read = || {
        let (code, rest) = series.split_first_chunk::<2>()?;
        *series = rest;
        Some(u16::from_le_bytes(*code))
    };
    Some(match form {
        0 => None,
        1 => Some(Cell::one(0)),
        2 => Some(Cell::one(read()?)),
        _ => Some(Cell { min: read()?, avg: read()?, max: read()? }),
    })
}

fn read_number(row: &mut &[u8]) -> Option<u32> {
    let mut number = 0u64;
    for place in 0..NUMBER_BYTES {
        let (byte, rest) = row.split_first()?;
        *row = rest;
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return u32::try_from(number).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn unpacked(row: &[u8], wanted: Option<u32>) -> Option<Vec<(Key, Cell)>> {
        let mut cells = Vec::new();
        unpack(row, wanted, |key, cell| cells.push((key, cell)))?;
        Some(cells)
    }

    #[test]
    fn values_keep_three_digits_and_their_order() {
        for exact in [0.0, 1.0, 0.5, 3.0, 4096.0, 1_099_511_627_776.0] {
            assert_eq!(value(code(exact).unwrap()), exact);
        }
        let mut last = 0;
        let mut one = 1e-11;
        while one < 1e26 {
            let code = code(one).unwrap();
            assert!((value(code) / one - 1.0).abs() <= 1.0 / 1_024.0, "{one}: {}", value(code));
            assert!(code >= last);
            last = code;
            one *= 1.000_37;
        }
        assert_eq!(code(1e-300), Some(1));
        assert_eq!(code(1e300), Some(u16::MAX));
        assert_eq!(code(f64::MAX), Some(u16::MAX));
        assert_eq!((code(-1.0), code(f64::NAN), code(f64::INFINITY)), (None, None, None));
    }

    #[test]
    fn rows_come_back_and_subjects_are_found_in_them() {
        let key = |subject, metric, index| Key { subject, metric, index };
        let cells = [
            (key(1, 1, 0), Cell::one(0)),
            (key(1, 1, 1), Cell::one(77)),
            (key(1, 1, 5), Cell { min: 0, avg: 3, max: 9 }),
            (key(1, 2, 0), Cell::one(u16::MAX)),
            (key(300, 1, 2), Cell::one(1)),
            (key(300, 63, INDEX_MAX), Cell { min: 1, avg: 2, max: 3 }),
            (key(u32::MAX, 16, 0), Cell::one(5)),
        ];
        let row = pack(cells);
        assert_eq!(unpacked(&row, None).unwrap(), cells);
        assert_eq!(unpacked(&row, Some(300)).unwrap(), cells[4..6]);
        assert_eq!(unpacked(&row, Some(2)).unwrap(), []);
        assert!(pack([]).is_empty());
    }

    #[test]
    fn damaged_rows_end_and_never_panic() {
        let key = |subject, index| Key { subject, metric: 9, index };
        let row = pack(
            (0..40)
                .map(|number| (key(number / 4 * 1_000, number as u16 % 4), Cell { min: 1, avg: 2, max: 3 })),
        );
        let mut refused = 0;
        for at in 0..row.len() {
            refused += usize::from(unpacked(&row[..at], None).is_none());
            for bit in 0..8 {
                let mut damaged = row.clone();
                damaged[at] ^= 1 << bit;
                refused += usize::from(unpacked(&damaged, None).is_none());
            }
        }
        assert!(refused > row.len());
        assert_eq!(unpacked(&[0xff; 6], None), None);
    }
}
