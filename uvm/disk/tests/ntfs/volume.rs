//! Reads a volume's records, as plainly as can be, to compare those of two volumes.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn signed(bytes: &[u8]) -> i64 {
    let bits = 64 - 8 * bytes.len() as u32;
    (number(bytes, 0, bytes.len()) as i64) << bits >> bits
}

/// A volume in a file.
pub(crate) struct Volume {
    file: std::fs::File,
    pub(crate) boot: Vec<u8>,
    pub(crate) cluster_size: u64,
    record_size: usize,
}

/// An attribute without where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attribute {
    /// `None` where it lies elsewhere.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) flags: u64,
    /// Allocated, size and initialized size of what lies elsewhere.
    pub(crate) sizes: Vec<u64>,
    pub(crate) runs: Vec<(Option<u64>, u64)>,
}

/// A record: its header's fields, and its attributes by type and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) sequence: u64,
    pub(crate) links: u64,
    pub(crate) flags: u64,
    pub(crate) attributes: BTreeMap<(u64, String), Attribute>,
}

impl Volume {
    pub(crate) fn open(path: &Path) -> Self {
        let file = std::fs::File::open(path).unwrap();
        let mut boot = vec![0; 512];
        file.read_exact_at(&mut boot, 0).unwrap();
        let cluster_size = number(&boot, 11, 2) * u64::from(boot[13]);
        let record_size = match boot[64] as i8 {
            clusters @ 1.. => clusters as usize * cluster_size as usize,
            power => 1 << -power,
        };
        Self { file, boot, cluster_size, record_size }
    }

    pub(crate) fn read(&self, lcn: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, lcn * self.cluster_size).unwrap();
        bytes
    }

    /// The first bytes of the first run of an attribute.
    pub(crate) fn contents(&self, attribute: &Attribute) -> Vec<u8> {
        let len = attribute.sizes[1].min(attribute.runs[0].1 * self.cluster_size);
        self.read(attribute.runs[0].0.unwrap(), len as usize)
    }

    /// One of the first records.
    pub(crate) fn record(&self, index: usize) -> Record {
        let mft = self.read(number(&self.boot, 48, 8), 27 * self.record_size);
        let mut bytes = mft[index * self.record_size..(index + 1) * self.record_size].to_vec();
        assert_eq!(&bytes[..4], b"FILE", "record {index}");
        unprotect(&mut bytes);
        let mut attributes = BTreeMap::new();
        let mut at = number(&bytes, 20, 2) as usize;
        while number(&bytes, at, 4) != 0xffff_ffff {
            let len = number(&bytes, at + 4, 4) as usize;
            let (key, attribute) = attribute(&bytes[at..at + len]);
            assert!(attributes.insert(key, attribute).is_none(), "twice");
            at += len;
        }
        assert_eq!(number(&bytes, 24, 4) as usize, at + 8, "bytes in use");
        assert_eq!(number(&bytes, 28, 4) as usize, self.record_size);
        Record {
            sequence: number(&bytes, 16, 2),
            links: number(&bytes, 18, 2),
            flags: number(&bytes, 22, 2),
            attributes,
        }
    }
}

pub(crate) fn unprotect(bytes: &mut [u8]) {
    let (array, count) = (number(bytes, 4, 2) as usize, number(bytes, 6, 2) as usize);
    assert_eq!(count, bytes.len() / 512 + 1);
    for stride in 1..count {
        assert_eq!(bytes[stride * 512 - 2..stride * 512], bytes[array..array + 2], "torn");
        bytes.copy_within(array + 2 * stride..array + 2 * stride + 2, stride * 512 - 2);
    }
}

/// The reverse, with the array at `at`.
pub(crate) fn protect(bytes: &mut [u8], at: usize) {
    let strides = bytes.len() / 512;
    bytes[4] = at as u8;
    bytes[6] = strides as u8 + 1;
    bytes[at..at + 2].copy_from_slice(&[7, 0]);
    for stride in 1..=strides {
        bytes.copy_within(stride * 512 - 2..stride * 512, at + 2 * stride);
        bytes[stride * 512 - 2..stride * 512].copy_from_slice(&[7, 0]);
    }
}

fn attribute(bytes: &[u8]) -> ((u64, String), Attribute) {
    let name_at = number(bytes, 10, 2) as usize;
    let name: Vec<u16> =
        (0..usize::from(bytes[9])).map(|i| number(bytes, name_at + 2 * i, 2) as u16).collect();
    let key = (number(bytes, 0, 4), String::from_utf16(&name).unwrap());
    let flags = number(bytes, 12, 2);
    if bytes[8] == 0 {
        let at = number(bytes, 20, 2) as usize;
        let value = bytes[at..at + number(bytes, 16, 4) as usize].to_vec();
        return (key, Attribute { value: Some(value), flags, sizes: Vec::new(), runs: Vec::new() });
    }
    let sizes = [40, 48, 56].map(|at| number(bytes, at, 8)).to_vec();
    let mut runs = Vec::new();
    let (mut at, mut lcn) = (number(bytes, 32, 2) as usize, 0);
    while bytes[at] != 0 {
        let (a, b) = (usize::from(bytes[at] & 15), usize::from(bytes[at] >> 4));
        lcn += if b == 0 { 0 } else { signed(&bytes[at + 1 + a..at + 1 + a + b]) };
        runs.push(((b != 0).then_some(lcn as u64), number(bytes, at + 1, a)));
        at += 1 + a + b;
    }
    assert_eq!(number(bytes, 24, 8) + 1, runs.iter().map(|run| run.1).sum::<u64>(), "highest cluster");
    (key, Attribute { value: None, flags, sizes, runs })
}
