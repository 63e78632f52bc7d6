//! What hypervisors can do, as presets for the fake.

use crate::hypervisor::{Capabilities, Change};

/// Presets of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FakeCapabilities {
    /// QEMU processes driven over QMP.
    Qemu,
    /// libvirt with QEMU.
    Libvirt,
    /// Xen's libxl: nothing changes while a domain runs but its disks, and a disk has one user.
    Libxl,
    /// A hypervisor that has nothing a manager may lack.
    Bare,
}

impl FakeCapabilities {
    /// All presets.
    pub const ALL: [Self; 4] = [Self::Qemu, Self::Libvirt, Self::Libxl, Self::Bare];

    /// The map.
    pub fn capabilities(self) -> Capabilities {
        let bare = Capabilities {
            suspend: false,
            shutdown: false,
            hot_plug: false,
            shared_read: false,
            vcpus_up: Change::Restart,
            vcpus_down: Change::Restart,
            memory_up: Change::Restart,
            memory_down: Change::Restart,
            volume_grow: Change::Unsupported,
            io_limits: Change::Unsupported,
            numa: false,
            per_cpu_statistics: false,
        };
        let common = Capabilities { suspend: true, shutdown: true, hot_plug: true, ..bare.clone() };
        match self {
            Self::Qemu => Capabilities {
                shared_read: true,
                volume_grow: Change::Live,
                io_limits: Change::Live,
                per_cpu_statistics: true,
                ..common
            },
            Self::Libvirt => Capabilities {
                shared_read: true,
                vcpus_up: Change::Live,
                memory_up: Change::Live,
                memory_down: Change::Live,
                volume_grow: Change::Live,
                io_limits: Change::Live,
                numa: true,
                per_cpu_statistics: true,
                ..common
            },
            Self::Libxl => Capabilities {
                volume_grow: Change::Restart,
                io_limits: Change::Restart,
                numa: true,
                per_cpu_statistics: true,
                ..common
            },
            Self::Bare => bare,
        }
    }
}
