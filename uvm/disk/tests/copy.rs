//! Whole copies over devices in memory that fail, lie, and were in use before.
#![allow(clippy::unwrap_used)]

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uvm_disk::copy::{Contents, Copied};
use uvm_disk::gpt::wipe_tables;
use uvm_disk::{BlockDevice, Error, ErrorKind, Geometry, Memory, Result};

const MIB: usize = 1 << 20;
const NEVER: u64 = u64::MAX;

/// Every write counts; the n-th and all that follow fail. One write may be dropped, one byte read wrong.
struct Faulty {
    disk: Memory,
    writes: AtomicU64,
    fails_from: u64,
    drops: u64,
    flips: u64,
    fired: AtomicU64,
}

impl Faulty {
    fn new(disk: Memory) -> Self {
        let zero = || AtomicU64::new(0);
        Self { disk, writes: zero(), fails_from: NEVER, drops: NEVER, flips: NEVER, fired: zero() }
    }

    fn fire(&self) {
        self.fired.fetch_add(1, Ordering::Relaxed);
    }

    fn fired(&self) -> bool {
        self.fired.load(Ordering::Relaxed) > 0
    }

    /// Whether this write reaches the disk.
    fn arrives(&self) -> io::Result<bool> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        if number >= self.fails_from {
            self.fire();
            return Err(io::Error::other("planted"));
        }
        if number == self.drops {
            self.fire();
        }
        Ok(number != self.drops)
    }
}

impl BlockDevice for Faulty {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buf)?;
        if let Some(byte) = self.flips.checked_sub(offset).and_then(|at| buf.get_mut(at as usize)) {
            *byte ^= 1;
            self.fire();
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if self.arrives()? { self.disk.write_at(offset, buf) } else { Ok(()) }
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.arrives()? { self.disk.write_zeroes(offset, len) } else { Ok(()) }
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        unreachable!("a copy discards nothing")
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk with something at both ends, zeroes between, and pieces that are neither.
fn source(size: usize, block: u32) -> Memory {
    let disk = Memory::new(size, block);
    let last = size as u64 - 512;
    for offset in [0, 700, MIB as u64 - 1, 2 * MIB as u64 + 5, 3 * MIB as u64, last] {
        if offset < size as u64 {
            disk.write_at(offset, &[offset as u8 | 1]).unwrap();
        }
    }
    disk
}

/// A disk that was in use.
fn used(size: usize, block: u32) -> Memory {
    let disk = Memory::new(size, block);
    disk.write_at(0, &vec![0xaa; size]).unwrap();
    disk
}

fn copy(source: &Memory, target: &dyn BlockDevice) -> Result<(Copied, u64)> {
    wipe_tables(target)?;
    let mut asked = 0;
    let copied = Copied::write(target, source.geometry().size, &mut |offset, buffer| {
        assert_eq!(offset, asked, "every byte is asked for once, in order");
        asked += buffer.len() as u64;
        source.read_at(offset, buffer).map_err(|error| Error::io("reading", offset, error))
    })?;
    assert_eq!(asked, source.geometry().size);
    let verified = copied.verify(target)?;
    let edges = copied.commit(target)?;
    Ok((copied, verified + edges))
}

#[test]
fn a_copy_is_its_source_and_zero_behind_it() {
    for block in [512, 4096] {
        let unit = block as usize;
        for size in [unit, MIB - unit, MIB, MIB + unit, 2 * MIB, 2 * MIB + unit, 5 * MIB + 3 * unit] {
            for more in [0, unit, MIB, 3 * MIB + unit] {
                let from = source(size, block);
                let target = used(size + more, block);
                let (copied, verified) = copy(&from, &target).unwrap();
                let contents = target.contents();
                assert!(contents[..size] == from.contents(), "{size} bytes on {more} more");
                assert!(contents[size..].iter().all(|byte| *byte == 0), "{size} bytes on {more} more");
                assert_eq!(copied.copied_bytes() + copied.zero_bytes(), size as u64);
                assert_eq!(verified, (size + more) as u64);
            }
        }
    }
}

#[test]
fn zeroes_are_written_only_where_there_are_none() {
    for block in [512, 4096] {
        let from = source(8 * MIB, block);
        let count = |target: Memory| {
            let target = Faulty::new(target);
            let (copied, _) = copy(&from, &target).unwrap();
            // The first MiB, the third, the fourth and the last hold something.
            assert_eq!((copied.copied_bytes(), copied.zero_bytes()), (4 << 20, 4 << 20));
            assert!(target.disk.contents() == from.contents());
            target.writes.load(Ordering::Relaxed)
        };
        // Two wipe the tables, two copy, two are the edges.
        assert_eq!(count(Memory::new(8 * MIB, block)), 6);
        assert_eq!(count(used(8 * MIB, block)), 6 + 4);
    }
}

#[test]
fn whatever_write_fails_leaves_no_table() {
    for block in [512, 4096] {
        let from = source(6 * MIB, block);
        let mut n = 0;
        loop {
            let target = Faulty { fails_from: n, ..Faulty::new(used(7 * MIB, block)) };
            let Err(error) = copy(&from, &target) else {
                assert!(!target.fired());
                break;
            };
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(target.fired());
            let contents = target.disk.contents();
            // Before the first wipe the disk is what it was.
            if n > 0 {
                assert!(contents[..MIB].iter().all(|byte| *byte == 0), "write {n}");
            } else {
                assert!(contents[..MIB].iter().all(|byte| *byte == 0xaa));
            }
            n += 1;
        }
        // Two wipe the tables, two copy, two make zero, two are the edges.
        assert_eq!(n, 8, "each of the writes failed in turn");
    }
}

#[test]
fn a_backup_table_is_not_there_before_the_copy_was_verified() {
    for block in [512, 4096] {
        let from = source(6 * MIB, block);
        let target = used(6 * MIB, block);
        wipe_tables(&target).unwrap();
        let copied = Copied::write(&target, 6 << 20, &mut |offset, buffer| {
            from.read_at(offset, buffer).map_err(|error| Error::io("reading", offset, error))
        })
        .unwrap();
        copied.verify(&target).unwrap();
        let edges_are_zero = || {
            let contents = target.contents();
            contents[..MIB].iter().chain(&contents[5 * MIB..]).all(|byte| *byte == 0)
        };
        assert!(edges_are_zero());
        copied.commit(&target).unwrap();
        assert!(target.contents() == from.contents());
        copied.revoke(&target).unwrap();
        assert!(edges_are_zero());
    }
}

#[test]
fn a_lie_is_found() {
    for block in [512, 4096] {
        let from = source(8 * MIB, block);
        // A byte of a piece with contents, of one without, of the space behind; a dropped write of either.
        let faults = [((2 << 20) + 9, NEVER), ((5 << 20) + 1, NEVER), ((9 << 20) + 4, NEVER), (NEVER, 2)];
        for (flips, drops) in faults.into_iter().chain([(NEVER, 4), (NEVER, 5)]) {
            let target = Faulty { flips, drops, ..Faulty::new(used(10 * MIB, block)) };
            let error = copy(&from, &target).err().unwrap();
            assert!(target.fired());
            assert_eq!(error.kind(), ErrorKind::VerificationFailed, "{flips} {drops} {error}");
            assert!(error.offset().is_some());
            assert!(target.disk.contents()[..MIB].iter().all(|byte| *byte == 0), "{flips} {drops}");
        }
    }
}

#[test]
fn what_cannot_be_copied_is_refused_before_a_write() {
    let target = Faulty::new(Memory::new(2 * MIB, 512));
    let mut feed = |_: u64, _: &mut [u8]| -> Result<()> { unreachable!("nothing is read") };
    for (size, kind) in
        [((2 << 20) + 512, ErrorKind::NoSpace), (u64::MAX, ErrorKind::NoSpace), (0, ErrorKind::Unsupported)]
    {
        assert_eq!(Copied::write(&target, size, &mut feed).err().unwrap().kind(), kind);
    }
    assert_eq!(target.writes.load(Ordering::Relaxed), 0);
}

#[test]
fn a_source_that_fails_ends_the_copy() {
    let target = Memory::new(4 * MIB, 512);
    let failed = Copied::write(&target, 4 << 20, &mut |offset, _| match offset {
        0 => Ok(()),
        _ => Err(Error::source_stream("the stream", io::ErrorKind::UnexpectedEof.into())),
    });
    assert_eq!(failed.err().unwrap().kind(), ErrorKind::Source);
}

#[test]
fn contents_are_every_byte_in_order() {
    for block in [512, 4096] {
        let size = 5 * MIB + block as usize;
        let device = Arc::new(source(size, block));
        let mut contents = Contents::new(device.clone());
        let mut bytes = Vec::new();
        contents.read_to_end(&mut bytes).unwrap();
        assert!(bytes == device.contents());
        assert_eq!(contents.zero_bytes(), 2 << 20);

        struct Broken(Memory);
        impl BlockDevice for Broken {
            fn geometry(&self) -> Geometry {
                self.0.geometry()
            }
            fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
                if offset < 2 << 20 { self.0.read_at(offset, buf) } else { Err(io::Error::other("planted")) }
            }
            fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
                unreachable!("a device that is read is not written")
            }
            fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
                unreachable!("a device that is read is not written")
            }
            fn discard(&self, _: u64, _: u64) -> io::Result<()> {
                unreachable!("a device that is read is not written")
            }
            fn flush(&self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut contents = Contents::new(Arc::new(Broken(source(size, block))));
        let mut bytes = Vec::new();
        let error = contents.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(bytes.len(), 2 * MIB);
        let inner = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
        assert_eq!(inner.offset(), Some(2 << 20));
        // Asked again, it fails again and does not go on behind the gap.
        assert!(contents.read(&mut [0; 512]).is_err());
    }
}
