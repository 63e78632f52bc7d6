//! Overwriting, and the layer that proves writes, over devices that lie.
#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uvm_disk::sanitize::{Pattern, overwrite, verify_overwrite};
use uvm_disk::{BlockDevice, ErrorKind, Geometry, Memory, Recorder};

/// Flips a bit of the byte at `flip` on reads, and drops the write that begins at `drop`.
struct Liar {
    disk: Memory,
    flip: u64,
    drop: u64,
    fired: AtomicU64,
}

impl Liar {
    fn new(flip: u64, drop: u64, block: u32) -> Arc<Self> {
        Arc::new(Self { disk: Memory::new(5 << 20, block), flip, drop, fired: AtomicU64::new(0) })
    }
    fn fired(&self) -> bool {
        self.fired.load(Ordering::Relaxed) > 0
    }
}

impl BlockDevice for Liar {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buf)?;
        if let Some(byte) = self.flip.checked_sub(offset).and_then(|i| buf.get_mut(i as usize)) {
            *byte ^= 4;
            self.fired.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if offset == self.drop {
            self.fired.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.disk.write_at(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.discard(offset, len)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

const NEVER: u64 = u64::MAX;

#[test]
fn every_byte_is_overwritten() {
    for block in [512, 4096] {
        let disk = Memory::new((5 << 20) + 4096, block);
        disk.write_at(0, &vec![0x77; (5 << 20) + 4096]).unwrap();
        for pattern in [Pattern::Random { seed: [7; 32] }, Pattern::Zero] {
            let mut last = 0;
            let mut progress = |done| {
                last = done;
                Ok(())
            };
            overwrite(&disk, pattern, &mut progress).unwrap();
            verify_overwrite(&disk, pattern, &mut progress).unwrap();
            assert_eq!(last, (5 << 20) + 4096);
            let wrong = verify_overwrite(&disk, Pattern::Random { seed: [8; 32] }, &mut |_| Ok(()));
            assert_eq!(wrong.unwrap_err().kind(), ErrorKind::VerificationFailed);
        }
        assert!(disk.contents().iter().all(|b| *b == 0));
    }
}

#[test]
fn every_byte_is_written_once() {
    struct Counted(Memory, AtomicU64);
    impl BlockDevice for Counted {
        fn geometry(&self) -> Geometry {
            self.0.geometry()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            self.0.read_at(offset, buf)
        }
        fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
            self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
            self.0.write_at(offset, buf)
        }
        fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
            unreachable!("an overwrite is never offloaded")
        }
        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            unreachable!("an overwrite is never offloaded")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }
    for block in [512, 4096] {
        let disk = Counted(Memory::new((5 << 20) + 4096, block), AtomicU64::new(0));
        overwrite(&disk, Pattern::Zero, &mut |_| Ok(())).unwrap();
        assert_eq!(disk.1.load(Ordering::Relaxed), (5 << 20) + 4096);
    }
}

#[test]
fn a_lie_is_found() {
    for (flip, drop) in [((3 << 20) + 77, NEVER), (NEVER, 2 << 20)] {
        let liar = Liar::new(flip, drop, 512);
        let pattern = Pattern::Random { seed: [1; 32] };
        overwrite(&*liar, pattern, &mut |_| Ok(())).unwrap();
        let error = verify_overwrite(&*liar, pattern, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VerificationFailed);
        assert!(liar.fired());

        let liar = Liar::new(flip, drop, 4096);
        let recorder = Recorder::new(liar.clone());
        for mib in 0..5 {
            recorder.write_at(mib << 20, &vec![mib as u8 + 1; 1 << 20]).unwrap();
        }
        let error = recorder.verify(&mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VerificationFailed);
        assert_eq!(error.offset().unwrap() >> 20, flip.min(drop) >> 20);
        assert!(liar.fired());
    }
}

#[test]
fn overlapping_writes_verify_as_last_written() {
    let liar = Liar::new(NEVER, NEVER, 512);
    let recorder = Recorder::new(liar.clone());
    recorder.write_at(0, &vec![1; 3 << 20]).unwrap();
    recorder.write_at(1000, &[2; 5000]).unwrap();
    recorder.write_at((1 << 20) - 10, &[3; 20]).unwrap();
    recorder.write_zeroes(4 << 20, 1 << 20).unwrap();
    recorder.write_at((4 << 20) + 512, &[4; 512]).unwrap();
    assert_eq!(recorder.verify(&mut |_| Ok(())).unwrap(), 4 << 20);
    for at in [0, 999, 1000, 5999, 6000, (1 << 20) - 1, 3 << 20 >> 1, (4 << 20) + 100, (4 << 20) + 600] {
        let mut byte = [0];
        liar.disk.read_at(at, &mut byte).unwrap();
        liar.disk.write_at(at, &[byte[0] ^ 0x80]).unwrap();
        assert_eq!(
            recorder.verify(&mut |_| Ok(())).unwrap_err().kind(),
            ErrorKind::VerificationFailed,
            "{at}"
        );
        liar.disk.write_at(at, &byte).unwrap();
    }
    assert_eq!(recorder.verify(&mut |_| Ok(())).unwrap(), 4 << 20);
}

#[test]
fn a_rest_is_checked_before_it_is_recorded_anew() {
    let liar = Liar::new(NEVER, 0, 512);
    let recorder = Recorder::new(liar.clone());
    recorder.write_at(0, &[9; 4096]).unwrap();
    assert!(liar.fired());
    recorder.write_at(1024, &[8; 512]).expect_err("the first write never arrived");
}
