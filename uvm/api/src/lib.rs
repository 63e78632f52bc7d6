//! The wire contract of the utility VM: serde types only.
//!
//! What we receive refuses unknown fields by name; enums that a client reads back have an `Unknown` arm, so
//! that an older client survives a newer appliance. Sizes are bytes unless the name says MiB, times are
//! RFC 3339 in UTC, rates are bytes per second.

mod copy;
mod device;
mod event;
mod job;
mod layout;
mod node;
mod plan;
mod problem;
mod provision;

pub use copy::{CaptureSpec, CloneSpec, RestoreSpec, Secret, StreamSource, StreamTarget};
pub use device::{Device, FileSystem, Partition, PartitionTable};
pub use event::{Event, EventBody};
pub use job::{
    CustomizeJobSpec, DeviceRef, DiskState, InspectSpec, Job, JobResult, JobSpec, JobState, OverwritePattern,
    SanitizeSpec, StepProgress, Technique,
};
pub use layout::{DiskSpec, FileSystemFormat, FileSystemSpec, PartitionJobSpec, PartitionSpec, TableKind};
pub use node::{Health, Node, PowerAction, PowerRequest};
pub use plan::{Extent, PartitionAction, Plan, PlannedPartition, PlannedStep};
pub use problem::{ErrorCode, Problem, Retry};
pub use provision::{
    BootSpec, CustomizeSpec, EthernetMatch, EthernetSpec, ImageSource, ImageSpec, Nameservers, NetworkSpec,
    ProvisionSpec, RouteSpec, UserSpec,
};
