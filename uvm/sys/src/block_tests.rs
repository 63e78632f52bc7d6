use super::*;
use std::os::fd::AsRawFd;

const SIZE: u64 = 4 << 20;

fn file_of(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

/// A real block device over a file. Needs root and the loop driver; `None` elsewhere, where the
/// machine has no block device that a test may write.
struct Loop {
    node: PathBuf,
    device: File,
    _backing: tempfile::NamedTempFile,
}

const LOOP_SET_FD: rustix::ioctl::Opcode = 0x4C00;
const LOOP_CLR_FD: rustix::ioctl::Opcode = 0x4C01;
const LOOP_SET_BLOCK_SIZE: rustix::ioctl::Opcode = 0x4C09;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;

impl Loop {
    fn attach(block_size: usize) -> Option<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").ok()?;
        let backing = file_of(SIZE);
        for _ in 0..16 {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let node = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&node).ok()?;
            let fd = backing.as_file().as_raw_fd() as usize;
            // SAFETY: LOOP_SET_FD takes an open descriptor as its integer argument.
            let set = unsafe { ioctl(&device, rustix::ioctl::IntegerSetter::<LOOP_SET_FD>::new_usize(fd)) };
            if set == Err(Errno::BUSY) {
                continue; // another test was faster
            }
            set.unwrap();
            let attached = Self { node, device, _backing: backing };
            // SAFETY: LOOP_SET_BLOCK_SIZE takes the size as its integer argument.
            unsafe {
                ioctl(
                    &attached.device,
                    rustix::ioctl::IntegerSetter::<LOOP_SET_BLOCK_SIZE>::new_usize(block_size),
                )
            }
            .unwrap();
            return Some(attached);
        }
        panic!("no free loop device");
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // SAFETY: LOOP_CLR_FD takes no argument.
        let _ = unsafe { ioctl(&self.device, NoArg::<LOOP_CLR_FD>::new()) };
    }
}

/// What must hold for every home of the interface.
fn exercise(disk: &KernelBlock) {
    let block = u64::from(disk.logical_block_size());
    assert_eq!(disk.size(), SIZE);
    let all = vec![0xA5; SIZE as usize];
    disk.write_at(0, &all).unwrap();
    disk.flush().unwrap();

    // Ragged at both ends: the neighbours keep their bytes.
    let (start, len) = (block - 1, 3 * block + 7);
    disk.write_zeroes(start, len).unwrap();
    // Within one block, and across nothing.
    disk.write_zeroes(8 * block + 3, 5).unwrap();
    disk.write_zeroes(9 * block, 0).unwrap();
    disk.flush().unwrap();
    let mut expected = all;
    expected[start as usize..(start + len) as usize].fill(0);
    expected[(8 * block + 3) as usize..(8 * block + 8) as usize].fill(0);
    let mut seen = vec![0; SIZE as usize];
    disk.read_at(0, &mut seen).unwrap();
    assert!(seen == expected);

    // Discard touches whole blocks inside the range only.
    disk.discard(16 * block + 1, 4 * block).unwrap();
    disk.discard(32 * block + 1, 2).unwrap();
    disk.flush().unwrap();
    disk.read_at(0, &mut seen).unwrap();
    let touched = (17 * block) as usize..(20 * block) as usize;
    assert!(seen[..touched.start] == expected[..touched.start]);
    assert!(seen[touched.end..] == expected[touched.end..]);

    disk.write_zeroes(0, SIZE).unwrap();
    disk.read_at(0, &mut seen).unwrap();
    assert!(seen.iter().all(|b| *b == 0));

    for (offset, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (0, SIZE + 1)] {
        let kind = io::ErrorKind::InvalidInput;
        assert_eq!(disk.read_at(offset, &mut vec![0; len as usize]).unwrap_err().kind(), kind);
        assert_eq!(disk.write_at(offset, &vec![0; len as usize]).unwrap_err().kind(), kind);
        assert_eq!(disk.write_zeroes(offset, len).unwrap_err().kind(), kind);
        assert_eq!(disk.discard(offset, len).unwrap_err().kind(), kind);
    }
    assert!(!disk.is_gone());
}

#[test]
fn a_file_is_a_disk() {
    for block_size in [512, 4096] {
        let file = file_of(SIZE + 100);
        let disk = KernelBlock::open(file.path(), OpenMode::ReadWrite).unwrap();
        let disk = disk.with_logical_block_size(block_size).unwrap();
        assert_eq!((disk.logical_block_size(), disk.physical_block_size()), (block_size, block_size));
        assert!(!disk.is_block_device());
        exercise(&disk);
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), SIZE + 100, "never grows or shrinks");
        assert_eq!(disk.reread_partition_table().unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn zeroes_keep_a_file_sparse() {
    let file = file_of(1 << 40);
    let disk = KernelBlock::open(file.path(), OpenMode::ReadWrite).unwrap();
    disk.write_at(1 << 39, &[1; 4096]).unwrap();
    disk.write_zeroes(1 << 38, 1 << 39).unwrap();
    let mut byte = [9];
    disk.read_at(1 << 39, &mut byte).unwrap();
    assert_eq!(byte, [0]);
    assert!(std::fs::metadata(file.path()).unwrap().blocks() < 64);
}

#[test]
fn a_file_is_written_by_one_at_a_time() {
    let file = file_of(SIZE);
    let first = KernelBlock::open(file.path(), OpenMode::ReadWrite).unwrap();
    assert_eq!(KernelBlock::open(file.path(), OpenMode::ReadWrite).unwrap_err().kind(), ErrorKind::Busy);
    KernelBlock::open(file.path(), OpenMode::ReadOnly).unwrap();
    drop(first);
    KernelBlock::open(file.path(), OpenMode::ReadWrite).unwrap();
}

#[test]
fn what_cannot_be_a_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| KernelBlock::open(path, OpenMode::ReadOnly).unwrap_err().kind();
    assert_eq!(open(dir.path()), ErrorKind::Invalid);
    assert_eq!(open(Path::new("/dev/null")), ErrorKind::Invalid);
    assert_eq!(open(&dir.path().join("missing")), ErrorKind::NotFound);

    let file = file_of(SIZE);
    let disk = KernelBlock::open(file.path(), OpenMode::ReadOnly).unwrap();
    assert!(disk.write_at(0, &[0]).is_err());
    assert!(disk.write_zeroes(0, 512).is_err());
    assert_eq!(disk.with_logical_block_size(1000).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_file_that_shrank_ends_in_an_error() {
    let file = file_of(SIZE);
    let disk = KernelBlock::open(file.path(), OpenMode::ReadOnly).unwrap();
    file.as_file().set_len(512).unwrap();
    assert_eq!(disk.read_at(0, &mut [0; 1024]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_loop_device_is_a_disk() {
    for block_size in [512, 4096] {
        let Some(device) = Loop::attach(block_size) else { return };
        let disk = KernelBlock::open(&device.node, OpenMode::ReadWrite).unwrap();
        assert!(disk.is_block_device());
        assert_eq!(disk.logical_block_size() as usize, block_size);
        exercise(&disk);
        assert_eq!(
            KernelBlock::open(&device.node, OpenMode::ReadWrite).unwrap_err().kind(),
            ErrorKind::Busy,
            "held exclusively"
        );
        assert_eq!(disk.with_logical_block_size(512).unwrap_err().kind(), ErrorKind::Invalid);
    }
}

#[test]
fn another_disk_under_the_same_number_is_not_ours() {
    let Some(device) = Loop::attach(512) else { return };
    let mut disk = KernelBlock::open(&device.node, OpenMode::ReadOnly).unwrap();
    assert!(!disk.is_gone());
    let identity = disk.device.as_mut().unwrap();
    assert!(identity.diskseq.is_some());
    identity.diskseq = Some("0".into());
    assert!(disk.is_gone());
}

#[test]
fn who_holds_a_disk_to_read_it_keeps_writers_out_and_not_readers() {
    let file = file_of(SIZE);
    let device = Loop::attach(512);
    let mut paths = vec![(file.path().to_owned(), true)];
    paths.extend(device.as_ref().map(|device| (device.node.clone(), false)));
    for (path, is_file) in paths {
        let open = |mode| KernelBlock::open(&path, mode);
        let reader = open(OpenMode::ReadOnlyHeld).unwrap();
        assert_eq!(open(OpenMode::ReadWrite).unwrap_err().kind(), ErrorKind::Busy);
        assert_eq!(open(OpenMode::ReadOnlyHeld).is_ok(), is_file, "a device has one holder");
        open(OpenMode::ReadOnly).unwrap();
        reader.write_at(0, &[1; 512]).unwrap_err();
        drop(reader);
        let _writer = open(OpenMode::ReadWrite).unwrap();
        assert_eq!(open(OpenMode::ReadOnlyHeld).unwrap_err().kind(), ErrorKind::Busy);
    }
}
