//! Archives become the files of a file system under construction.

use std::io::Read;
use std::ops::ControlFlow;

use uvm_guest::{Attributes, GuestPath, Timestamp, layer};

use super::builder::{BuilderTree, Mounted, Volume};

/// An archive, and what errors call it.
pub(crate) struct Source<'a> {
    pub(crate) name: String,
    pub(crate) reader: &'a mut dyn Read,
}

/// Why a file system could not be filled.
pub(crate) type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Puts the archives one over the other, as an image's layers, and finishes the file system. Returns how many entries
/// there were.
pub(crate) fn fill(volume: Volume, clock: u64, sources: &mut [Source<'_>]) -> Result<u64, Failed> {
    let mtime = Timestamp { seconds: i64::try_from(clock).unwrap_or(i64::MAX), nanoseconds: 0 };
    let mounted = vec![Mounted { at: GuestPath::root(), volume }];
    let mut tree = BuilderTree::new(mounted, Attributes::root(0o755, mtime))?;
    let mut entries = 0;
    for source in sources {
        let applied = layer::apply(source.reader, &mut tree, &layer::Limits::default(), &mut |_| {
            ControlFlow::Continue(())
        });
        entries += applied.map_err(|error| Named { name: source.name.clone(), error })?.entries;
    }
    for volume in tree.into_volumes() {
        volume.finish()?;
    }
    Ok(entries)
}

/// An error that says which archive it is about.
#[derive(Debug)]
struct Named {
    name: String,
    error: uvm_guest::Error,
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl std::error::Error for Named {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}
