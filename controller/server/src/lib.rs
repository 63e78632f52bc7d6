//! The controller: one view of a grid of nodes under any hypervisor. Machines are made, changed and deleted
//! through its API; it finds the node, has the node's hypervisor set resources aside, hands disks to the node's
//! utility VM, has the jobs done, and starts the machines.
//!
//! ```text
//! http ── Command ──▶ core ── Effect ──▶ runtime ──▶ hypervisor, uvm
//!                      │ ▲                  │
//!              store ◀─┘ └──── Input ───────┘
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `model` | the words of the API: instances, disks, nodes, jobs, problems; what is sent and what is kept |
//! | `core` | every decision: a deterministic machine without clock, threads or I/O but the store |
//! | `store` | what is durable |
//! | `hypervisor` | the trait behind which each hypervisor is driven in its own language |
//! | `uvm` | the client of the utility VM |
//! | `runtime` | threads: the one writer, the calls to nodes, polling |
//! | `ca`, `signing`, `blobs` | the certificate authority, signatures of records, captured disks |
//! | `http` | the API |
//! | `config`, `serve` | configuration; a controller put together |
//! | `log`, `histogram` | lines for operators; counts by class |
//! | `cli` | the operator's command line |

pub mod blobs;
pub mod ca;
pub mod cli;
pub mod config;
pub mod core;
mod durable;
pub mod histogram;
pub mod http;
pub mod hypervisor;
pub mod log;
pub mod model;
pub mod runtime;
pub mod serve;
pub mod signing;
pub mod store;
pub mod uvm;
