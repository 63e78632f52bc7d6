//! A device in memory whose n-th write fails, tears, or is the last thing before the power goes.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use uvm_disk::{BlockDevice, Geometry};

const PAGE: usize = 4096;

/// What befalls one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is refused with EIO and changes nothing; the device goes on working.
    Fail,
    /// Some of its logical blocks reach the medium, the others do not; then the power is gone.
    Tear,
    /// The power is gone before it; of what was not flushed, any logical block may have reached the medium.
    Cut,
}

/// Sparse bytes.
#[derive(Clone, Default)]
struct Pages(BTreeMap<u64, Box<[u8; PAGE]>>);

impl Pages {
    fn read(&self, offset: u64, buf: &mut [u8]) {
        buf.fill(0);
        for (page, at, range) in parts(offset, buf.len()) {
            if let Some(bytes) = self.0.get(&page) {
                let len = range.len();
                buf[range].copy_from_slice(&bytes[at..at + len]);
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (page, at, range) in parts(offset, bytes.len()) {
            let part = &bytes[range];
            if !self.0.contains_key(&page) && part.iter().all(|byte| *byte == 0) {
                continue;
            }
            let target = self.0.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            target[at..at + part.len()].copy_from_slice(part);
        }
    }
}

/// Page, offset in it, and the range of the buffer that lies there.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let position = offset + done as u64;
        let at = (position % PAGE as u64) as usize;
        let take = (PAGE - at).min(len - done);
        let range = done..done + take;
        done += take;
        (take > 0).then_some((position / PAGE as u64, at, range))
    })
}

struct State {
    /// What reads see.
    current: Pages,
    /// What survives for certain.
    durable: Pages,
    /// Writes since the last flush, in order.
    pending: Vec<(u64, Vec<u8>)>,
    writes: u64,
    fault: Option<(u64, Fault)>,
    fired: bool,
    dead: bool,
    random: u64,
}

/// The device. Clone the [`Arc`] to keep an eye on it while an operation has it.
pub struct FaultDevice {
    geometry: Geometry,
    state: Mutex<State>,
}

impl FaultDevice {
    /// An empty device that works.
    pub fn new(size: u64, logical_block_size: u32) -> Arc<Self> {
        Self::with(size, logical_block_size, Pages::default())
    }

    fn with(size: u64, logical_block_size: u32, pages: Pages) -> Arc<Self> {
        let geometry = Geometry { size, logical_block_size, physical_block_size: logical_block_size };
        let state = State {
            durable: pages.clone(),
            current: pages,
            pending: Vec::new(),
            writes: 0,
            fault: None,
            fired: false,
            dead: false,
            random: 0,
        };
        Arc::new(Self { geometry, state: Mutex::new(state) })
    }

    /// The same contents on a device of its own, whose write number `at` (from 0) meets `fault`. `seed` decides what
    /// reaches the medium. Also turns a survivor of another size: a grown disk.
    pub fn again(&self, fault: Option<(u64, Fault)>, seed: u64) -> Arc<Self> {
        self.resized(self.geometry.size, fault, seed)
    }

    /// As [`Self::again`], with another size.
    pub fn resized(&self, size: u64, fault: Option<(u64, Fault)>, seed: u64) -> Arc<Self> {
        let pages = self.lock().durable.clone();
        let new = Self::with(size, self.geometry.logical_block_size, pages);
        new.arm(fault, seed);
        new
    }

    fn arm(&self, fault: Option<(u64, Fault)>, seed: u64) {
        let mut state = self.lock();
        state.fault = fault;
        state.random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the device was held")
    }

    /// Writes so far, refused ones included.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// Whether the fault happened.
    pub fn fired(&self) -> bool {
        self.lock().fired
    }

    /// Puts what survives into a sparse file, for a foreign judge.
    pub fn save(&self, path: &Path) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::create(path).expect("a file");
        file.set_len(self.geometry.size).expect("a size");
        for (page, bytes) in &self.lock().durable.0 {
            let offset = page * PAGE as u64;
            let len = (self.geometry.size.saturating_sub(offset)).min(PAGE as u64) as usize;
            file.write_all_at(&bytes[..len], offset).expect("written");
        }
    }

    /// Takes the contents of a file that a foreign tool made; zeroes stay holes.
    pub fn load(path: &Path, logical_block_size: u32) -> Arc<Self> {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::open(path).expect("a file");
        let size = file.metadata().expect("metadata").len();
        let mut pages = Pages::default();
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < size {
            let len = ((size - offset) as usize).min(buffer.len());
            file.read_exact_at(&mut buffer[..len], offset).expect("read");
            pages.write(offset, &buffer[..len]);
            offset += len as u64;
        }
        Self::with(size, logical_block_size, pages)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= self.geometry.size);
        assert!(end.is_some(), "a write of {} bytes at {offset} past the end", bytes.len());
        let block = self.geometry.logical_block_size as usize;
        let state = &mut *self.lock();
        if state.dead {
            return Err(io::Error::other("the power is off"));
        }
        let number = state.writes;
        state.writes += 1;
        match state.fault.filter(|(at, _)| *at == number) {
            Some((_, Fault::Fail)) => {
                state.fired = true;
                return Err(io::Error::from_raw_os_error(5));
            }
            Some((_, fault)) => {
                if fault == Fault::Tear {
                    state.pending.push((offset, bytes.to_vec()));
                }
                state.fired = true;
                state.dead = true;
                for (at, bytes) in std::mem::take(&mut state.pending) {
                    survive(&mut state.durable, &mut state.random, at, &bytes, block);
                }
                state.current = state.durable.clone();
                return Err(io::Error::other("the power went off"));
            }
            None => {}
        }
        state.current.write(offset, bytes);
        state.pending.push((offset, bytes.to_vec()));
        Ok(())
    }
}

/// Each logical block of a write that was not flushed is there or is not.
fn survive(durable: &mut Pages, random: &mut u64, offset: u64, bytes: &[u8], block: usize) {
    let mut done = 0;
    while done < bytes.len() {
        let len = (block - (offset as usize + done) % block).min(bytes.len() - done);
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        if *random & 0x100 != 0 {
            durable.write(offset + done as u64, &bytes[done..done + len]);
        }
        done += len;
    }
}

impl BlockDevice for FaultDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.lock();
        if state.dead {
            return Err(io::Error::other("the power is off"));
        }
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.geometry.size);
        end.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a read past the end"))?;
        state.current.read(offset, buf);
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        // One request, one fault; holes stay holes.
        self.write(offset, &vec![0; len as usize])
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        let state = &mut *self.lock();
        if state.dead {
            return Err(io::Error::other("the power is off"));
        }
        for (offset, bytes) in std::mem::take(&mut state.pending) {
            state.durable.write(offset, &bytes);
        }
        Ok(())
    }
}

/// Runs `operation` on copies of `before` with every kind of fault at every write it makes, or at some 64 of them
/// spread evenly where it makes more, and lets `check` look at each survivor (its power is on again). Every fault has
/// to happen. Returns how many there were.
pub fn every_fault(
    before: &FaultDevice,
    size: u64,
    operation: &dyn Fn(Arc<FaultDevice>) -> uvm_disk::Result<()>,
    check: &dyn Fn(&FaultDevice, u64, Fault),
) -> u64 {
    let whole = before.resized(size, None, 0);
    operation(whole.clone()).expect("without a fault it works");
    let writes = whole.writes();
    let step = writes.div_ceil(64).max(1) as usize;
    let mut faults = 0;
    for at in (0..writes).step_by(step) {
        for fault in [Fault::Fail, Fault::Tear, Fault::Cut] {
            let device = before.resized(size, Some((at, fault)), at + 1);
            let result = operation(device.clone());
            assert!(device.fired(), "{fault:?} at write {at} of {writes} did not happen");
            if fault != Fault::Fail {
                assert!(result.is_err(), "{fault:?} at write {at} of {writes} was not noticed");
            }
            // What the operation did after a refused write is on the medium at last; a dead device refuses this.
            let _ = device.flush();
            check(&device.again(None, 0), at, fault);
            faults += 1;
        }
    }
    faults
}
