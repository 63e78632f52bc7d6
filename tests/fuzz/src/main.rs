//! Everything of the utility VM that reads bytes others wrote, under libFuzzer.
//!
//! An input of a disk's target is not the disk but a few changes of a good one ([`device::Changes`]), whose checksums
//! are made right afterwards ([`sums`]): else every input would end at the first of them. The good ones are images in
//! the folder `UVM_FUZZ_IMAGES`, made by foreign tools when `cargo xtask fuzz` begins. `UVM_FUZZ_TARGET` chooses the
//! target. A panic, a run of more than the time libFuzzer was given, and one allocation too many each end the process
//! with the input kept.

#![no_main]

mod device;
mod sums;
mod target;

use std::alloc::System;
use std::sync::OnceLock;

use cap::Cap;
use libfuzzer_sys::fuzz_target;

use target::Target;

/// Counts what is allocated; an allocation beyond the target's bound ends the process.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        TARGET.get_or_init(Target::from_environment);
    },
    |input: &[u8]| {
        let target = TARGET.get_or_init(Target::from_environment);
        let prepared = target.prepare(input);
        bounded(target.memory(), || target.run(prepared));
    }
);

/// Runs `work` with `bytes` more memory than is in use now, and no more.
fn bounded(bytes: usize, work: impl FnOnce()) {
    let limit = ALLOCATOR.allocated().saturating_add(bytes);
    ALLOCATOR.set_limit(limit).expect("the limit is above what is allocated");
    work();
    ALLOCATOR.set_limit(usize::MAX).expect("this is no limit");
}
