//! Lists by cursor. A cursor is opaque: it holds the last thing seen, so that a list that grows or shrinks meanwhile
//! shows nothing twice and leaves nothing out that was there all the time.

use std::collections::BTreeMap;
use std::ops::Bound;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::answer::{Answer, Refusal};
use crate::core::State;
use crate::model::{Id, Page};

/// Records of a page where no number is given.
const DEFAULT_LIMIT: usize = 100;
/// Most records of a page.
pub(crate) const MAX_LIMIT: usize = 1_000;

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Most records.
    pub(crate) limit: usize,
    /// The last thing of the page before.
    pub(crate) after: Option<Id>,
}

impl Part {
    pub(crate) fn new(limit: Option<usize>, cursor: Option<&str>) -> Answer<Self> {
        Ok(Self { limit: limit_of(limit)?, after: cursor.map(id_of).transpose()? })
    }
}

pub(crate) fn limit_of(limit: Option<usize>) -> Answer<usize> {
    match limit.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        other => Err(Refusal::invalid(format!("limit is {other}; it is to be 1 to {MAX_LIMIT}"))),
    }
}

fn decode<const N: usize>(cursor: &str) -> Answer<[u8; N]> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Refusal::invalid("cursor is to be the `next_cursor` of the page before"))
}

fn id_of(cursor: &str) -> Answer<Id> {
    decode(cursor).map(|bytes| Id(Uuid::from_bytes(bytes)))
}

/// A cursor that holds an id.
pub(crate) fn cursor_of(id: Id) -> String {
    URL_SAFE_NO_PAD.encode(id.0.as_bytes())
}

/// The sequence number in a cursor of events.
pub(crate) fn sequence_of(cursor: &str) -> Answer<u64> {
    decode(cursor).map(u64::from_be_bytes)
}

/// A cursor that holds a sequence number.
pub(crate) fn cursor_of_sequence(sequence: u64) -> String {
    URL_SAFE_NO_PAD.encode(sequence.to_be_bytes())
}

/// The records of a part, oldest first.
pub(crate) fn page<R: Clone>(
    records: &BTreeMap<Id, R>,
    part: Part,
    mut keep: impl FnMut(&R) -> bool,
) -> Page<R> {
    let from = part.after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut items = Vec::new();
    let mut last = None;
    for (id, record) in records.range((from, Bound::Unbounded)).filter(|(_, record)| keep(record)) {
        if items.len() == part.limit {
            return Page { items, next_cursor: last.map(cursor_of) };
        }
        last = Some(*id);
        items.push(record.clone());
    }
    Page { items, next_cursor: None }
}

/// The node a filter names, by id or by name.
pub(crate) fn node_of(state: &State, text: &str) -> Option<Id> {
    match text.parse() {
        Ok(id) => Some(id),
        Err(_) => state.nodes.values().find(|node| node.name == text).map(|node| node.id),
    }
}

/// Whether a filter is absent or met.
pub(crate) fn met<T: PartialEq + ?Sized>(filter: Option<&T>, found: &T) -> bool {
    filter.is_none_or(|wanted| wanted == found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(count: u128) -> BTreeMap<Id, u128> {
        (1..=count).map(|number| (Id(Uuid::from_u128(number)), number)).collect()
    }

    #[test]
    fn walking_shows_everything_once_whatever_the_limit() {
        for (count, limit) in [(0, 3), (1, 1), (9, 3), (10, 3), (11, 100)] {
            let records = records(count);
            let (mut seen, mut cursor, mut pages) = (Vec::new(), None, 0);
            loop {
                let part = Part::new(Some(limit), cursor.as_deref()).unwrap();
                let found = page(&records, part, |_| true);
                assert!(found.items.len() <= limit);
                seen.extend(found.items);
                pages += 1;
                cursor = found.next_cursor;
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(seen, (1..=count).collect::<Vec<_>>());
            assert_eq!(pages, (count as usize).div_ceil(limit).max(1), "no empty page at the end");
        }
    }

    #[test]
    fn a_filter_leaves_out_before_the_limit_counts() {
        let found = page(&records(10), Part { limit: 3, after: None }, |number| number % 2 == 0);
        assert_eq!(found.items, [2, 4, 6]);
        assert!(found.next_cursor.is_some());
    }

    #[test]
    fn limits_and_cursors_that_make_no_sense_are_refused() {
        for limit in [0, 1_001] {
            assert_eq!(Part::new(Some(limit), None).unwrap_err().0.status, 400);
        }
        let sequence = cursor_of_sequence(7);
        for cursor in ["", "%", "AAAA", &sequence] {
            assert_eq!(Part::new(None, Some(cursor)).unwrap_err().0.status, 400, "{cursor}");
        }
        assert_eq!(sequence_of(&sequence).unwrap(), 7);
    }
}
