//! Swap areas, judged by swaplabel, blkid, file and the kernel that swaps to one.
#![allow(clippy::unwrap_used)]

mod judge;

use std::cell::Cell;

use judge::fault::{FaultDevice, every_fault};
use judge::{Image, Loop, agree, ask};
use uuid::{Uuid, uuid};
use uvm_disk::swap::write_swap_header;
use uvm_disk::{BlockDevice, ErrorKind, Memory};

const ID: Uuid = uuid!("2b9a7f3e-1f07-4c83-9be1-0a5f4b1c2d3e");

#[test]
fn foreign_tools_know_a_swap_area() {
    for (block, page) in [(512, 4096), (4096, 4096), (512, 16_384), (4096, 65_536)] {
        let image = Image::new(64 << 20, block);
        // Another file system's superblock would make it two things at once.
        agree("mkfs.btrfs", &["-q", "-f", "-M", image.path()]);
        write_swap_header(&*image, ID, "swap-0", page).unwrap();
        let id = agree("blkid", &["-p", "-o", "export", image.path()]);
        for line in ["TYPE=swap", "VERSION=1", "LABEL=swap-0", &format!("UUID={ID}")] {
            assert!(id.lines().any(|found| found == line), "{line}: {id}");
        }
        let text = agree("swaplabel", &[image.path()]);
        assert!(text.contains("LABEL: swap-0") && text.contains(&ID.to_string()), "{text}");
        if page == 4096 {
            let text = agree("file", &["-b", image.path()]);
            let size = format!("size {} pages, 0 bad pages, LABEL=swap-0, UUID={ID}", (64 << 20) / page - 1);
            assert!(text.contains("4k page size") && text.contains(&size), "{text}");
        }
    }
}

#[test]
fn the_kernel_swaps_to_it() {
    for block in [512, 4096] {
        let image = Image::new(32 << 20, block);
        write_swap_header(&*image, ID, "", 4096).unwrap();
        image.flush().unwrap();
        let device = Loop::new(&image.path, block);
        agree("swapon", &["-p", "0", &device.0]);
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap();
        agree("swapoff", &[&device.0]);
        let line = swaps.lines().find(|line| line.starts_with(&device.0)).unwrap();
        // All pages but the header's, in KiB.
        assert!(line.split_whitespace().any(|word| word == ((32 << 10) - 4).to_string()), "{swaps}");
    }
}

#[test]
fn what_cannot_be_swap_is_refused() {
    let small = Memory::new(9 * 4096, 512);
    let kind = |device: &dyn BlockDevice, label, page| {
        write_swap_header(device, ID, label, page).map_err(|error| error.kind())
    };
    assert_eq!(kind(&small, "", 4096), Err(ErrorKind::NoSpace));
    assert_eq!(kind(&Memory::new(10 * 4096, 4096), "", 4096), Ok(()));
    assert_eq!(kind(&small, "a label of seventeen", 4096), Err(ErrorKind::Invalid));
    assert_eq!(kind(&small, "nul\0", 4096), Err(ErrorKind::Invalid));
    assert_eq!(kind(&small, "", 512), Err(ErrorKind::Invalid));
    assert!(small.contents().iter().all(|byte| *byte == 0));
}

#[test]
fn a_fault_leaves_nothing_or_a_whole_swap_area() {
    for block in [512, 4096] {
        let before = FaultDevice::new(4 << 20, block);
        write_swap_header(&*before, ID, "old", 4096).unwrap();
        let (folder, whole) = (tempfile::tempdir().unwrap(), Cell::new(0));
        let path = folder.path().join("disk");
        let faults = every_fault(
            &before,
            4 << 20,
            &|device| write_swap_header(&*device, Uuid::nil(), "new", 4096),
            &|survivor, at, fault| {
                survivor.save(&path);
                let path = path.to_str().unwrap();
                let (found, text) = ask("blkid", &["-p", path]);
                if found {
                    let old = text.contains("LABEL=\"old\"");
                    assert!(text.contains("TYPE=\"swap\""), "{text}");
                    assert!(old || text.contains("LABEL=\"new\""), "{fault:?} at {at}: {text}");
                    assert!(
                        agree("file", &["-b", path]).contains("size 1023 pages, 0 bad"),
                        "{fault:?} at {at}"
                    );
                    whole.set(whole.get() + 1);
                }
            },
        );
        assert!(faults >= 9 && whole.get() > 0, "{faults} {}", whole.get());
    }
}
