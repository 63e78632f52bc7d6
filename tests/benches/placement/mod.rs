//! Placement: how fast it answers, and how well it packs a real sequence of requests.

mod checker;
mod first_fit;
mod grid;
mod openb;
mod topology;
mod trace;

use std::path::{Path, PathBuf};

pub(crate) use openb::openb;
pub(crate) use topology::{Sequence, topology};

/// One line of the report.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    /// This product.
    pub(crate) ours: f64,
    /// Another way to do it, in the same run.
    pub(crate) peer: Option<f64>,
    /// Of both numbers.
    pub(crate) unit: &'static str,
    /// What the numbers do not say.
    pub(crate) note: String,
}

/// The folder of the traces: `UVM_DATA`, or `../shared/data` beside the workspace.
///
/// # Panics
/// Where there is no such folder.
pub(crate) fn data() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("UVM_DATA").map_or_else(beside, PathBuf::from);
    assert!(
        folder.join("topology/hosts.csv").is_file(),
        "the traces are missing: {} has no topology/hosts.csv; set UVM_DATA to the folder that has it",
        folder.display()
    );
    folder
}

/// Placements per second on one core, constraints on, at 1,000 and 10,000 nodes.
pub(crate) fn rates() -> Vec<Row> {
    [1_000, 10_000].into_iter().map(grid::rate).collect()
}
