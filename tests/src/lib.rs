//! What tests and the demo share: certificates, an image store with faults, a client of the API, and machines
//! under QEMU.
//!
//! This is the only place besides `xtask` that starts other programs; the utility VM never does.

mod certs;
mod client;
mod judge_vm;
mod machine;
mod qmp;
mod serial;
mod store;

pub use certs::{KeyPair, Pki};
pub use client::{Client, ClientError};
pub use judge_vm::JudgeVm;
pub use machine::{
    Accel, Appliance, ApplianceFiles, ApplianceOptions, Bus, Disk, Guest, GuestOptions, HotDisk,
};
pub use qmp::Qmp;
pub use serial::Serial;
pub use store::{Fault, Store};
