//! A good disk with a few changes, in memory as far as it is not zero.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use uvm_disk::{BlockDevice, Geometry};

pub(crate) const PAGE: usize = 4096;
type Page = [u8; PAGE];

/// A good image: its pages that are not zero.
pub(crate) struct Base {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) logical_block_size: u32,
    pages: BTreeMap<u64, Box<Page>>,
    /// The numbers of `pages`, to choose from.
    numbers: Vec<u64>,
}

impl Base {
    /// Reads an image; one whose name says `4096` has blocks of that size.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        use io::Read;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut file = std::fs::File::open(path)?;
        let logical_block_size = if name.contains("4096") { 4096 } else { 512 };
        let size = file.metadata()?.len() / u64::from(logical_block_size) * u64::from(logical_block_size);
        let mut pages = BTreeMap::new();
        for number in 0..size.div_ceil(PAGE as u64) {
            let mut page = Box::new([0; PAGE]);
            let length = (size - number * PAGE as u64).min(PAGE as u64) as usize;
            file.read_exact(&mut page[..length])?;
            if page.iter().any(|byte| *byte != 0) {
                pages.insert(number, page);
            }
        }
        let numbers = pages.keys().copied().collect();
        Ok(Self { name, size, logical_block_size, pages, numbers })
    }
}

/// Changes of an image, as the bytes of an input say: eight bytes each.
pub(crate) struct Changes<'i>(&'i [u8]);

impl<'i> Changes<'i> {
    /// At most this many; more only hide which one it was.
    const MAX: usize = 64;

    pub(crate) fn new(input: &'i [u8]) -> Self {
        Self(&input[..input.len().min(Self::MAX * 8)])
    }

    /// Where the disk is, what to write there: page, offset, width and value.
    fn apply(&self, disk: &Disk) {
        for change in self.0.as_chunks::<8>().0 {
            let [page_low, page_high, at_low, at_high, value @ ..] = *change;
            let Some(count) = disk.base.numbers.len().checked_sub(1) else { return };
            let chosen = usize::from(u16::from_le_bytes([page_low, page_high])) % (count + 1);
            let place = u16::from_le_bytes([at_low, at_high]);
            let at = disk.base.numbers[chosen] * PAGE as u64 + u64::from(place & 0xfff);
            let number = u32::from_le_bytes(value);
            // The four bits left of the place.
            let bytes: &[u8] = match place >> 12 {
                0 | 1 => &value[..1],
                2..=4 => &value[..2],
                5..=9 => &value[..],
                10 => &u64::from(number).to_le_bytes(),
                // Numbers near the end of the range.
                11 => &(u64::MAX - u64::from(number & 0xffff)).to_le_bytes(),
                12 => &(u32::MAX - (number & 0xff)).to_le_bytes(),
                13 => &number.to_be_bytes(),
                14 => &[value[0]; 64],
                _ => {
                    disk.copy(at, u64::from(number) % disk.base.size);
                    continue;
                }
            };
            disk.put(at, bytes);
        }
    }
}

/// A changed image. What is written stays in memory, and does not reach the image.
pub(crate) struct Disk {
    pub(crate) base: Arc<Base>,
    size: u64,
    over: RwLock<BTreeMap<u64, Box<Page>>>,
}

impl Disk {
    /// The image with the changes; `halves` of its end cut off.
    pub(crate) fn new(base: Arc<Base>, changes: &Changes<'_>, halves: u32) -> Self {
        let block = u64::from(base.logical_block_size);
        let size = base.size >> halves.min(63);
        let disk = Self { base, size: (size / block * block).max(block), over: RwLock::default() };
        changes.apply(&disk);
        disk
    }

    fn over(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Box<Page>>> {
        self.over.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers of the pages that are not as they were.
    pub(crate) fn changed(&self) -> BTreeSet<u64> {
        self.over().keys().copied().collect()
    }

    /// Bytes at a place; zeroes where they are not all on the disk.
    pub(crate) fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        if self.read_at(at, &mut bytes).is_err() {
            bytes.fill(0);
        }
        bytes
    }

    /// As far as it is on the disk.
    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        let len = self.size.saturating_sub(at).min(bytes.len() as u64) as usize;
        let _ = self.write_at(at, &bytes[..len]);
    }

    fn copy(&self, to: u64, from: u64) {
        let bytes = self.get(from, 32);
        self.put(to, &bytes);
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.size);
        end.map(drop)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the device"))
    }
}

/// The pieces of a range, page by page: page, where in it, and where in the range.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % PAGE as u64) as usize;
        let count = (PAGE - within).min(len - done);
        let piece = (at / PAGE as u64, within, done..done + count);
        done += count;
        (count > 0).then_some(piece)
    })
}

impl BlockDevice for Disk {
    fn geometry(&self) -> Geometry {
        let block = self.base.logical_block_size;
        Geometry { size: self.size, logical_block_size: block, physical_block_size: block }
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len() as u64)?;
        let over = self.over();
        for (page, within, part) in pieces(offset, buf.len()) {
            let part = &mut buf[part];
            match over.get(&page).or_else(|| self.base.pages.get(&page)) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + part.len()]),
                None => part.fill(0),
            }
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check(offset, buf.len() as u64)?;
        let mut over = self.over.write().unwrap_or_else(PoisonError::into_inner);
        for (page, within, part) in pieces(offset, buf.len()) {
            let old = || self.base.pages.get(&page).cloned().unwrap_or_else(|| Box::new([0; PAGE]));
            over.entry(page).or_insert_with(old)[within..within + part.len()].copy_from_slice(&buf[part]);
        }
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        let zeroes = [0; PAGE];
        let mut at = offset;
        while at < offset + len {
            let count = (offset + len - at).min(PAGE as u64);
            self.write_at(at, &zeroes[..count as usize])?;
            at += count;
        }
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
