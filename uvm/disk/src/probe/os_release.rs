//! Which operating system an ext file system holds (os-release(5)).

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ext4_view::{Ext4, Ext4Read};

use crate::Device;

const MAX_LEN: u64 = 64 << 10;

/// What a guest says it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OsRelease {
    /// `PRETTY_NAME`.
    pub pretty_name: Option<String>,
    /// `ID`.
    pub id: Option<String>,
    /// `VERSION_ID`.
    pub version_id: Option<String>,
}

struct Source(Device);

impl Ext4Read for Source {
    fn read(&mut self, start: u64, dst: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.0.read_at(start, dst)?)
    }
}

/// Reads the os-release file; `None` where there is none that can be read.
pub fn read_os_release(device: Device) -> Option<OsRelease> {
    // The reader meets hostile bytes: a panic in it says "not readable", and no more.
    catch_unwind(AssertUnwindSafe(|| load(device))).ok().flatten()
}

fn load(device: Device) -> Option<OsRelease> {
    let fs = Ext4::load(Box::new(Source(device))).ok()?;
    // The crate follows symbolic links beneath the file system's own root.
    let bytes = ["/etc/os-release", "/usr/lib/os-release"].into_iter().find_map(|path| {
        let metadata = fs.metadata(path).ok()?;
        (metadata.file_type().is_regular_file() && metadata.len() <= MAX_LEN).then(|| fs.read(path).ok())?
    })?;
    Some(parse(&String::from_utf8_lossy(&bytes)))
}

fn parse(text: &str) -> OsRelease {
    let mut release = OsRelease::default();
    for (key, value) in text.lines().filter_map(|line| line.trim().split_once('=')) {
        let field = match key {
            "PRETTY_NAME" => &mut release.pretty_name,
            "ID" => &mut release.id,
            "VERSION_ID" => &mut release.version_id,
            _ => continue,
        };
        *field = Some(value.trim_matches(['"', '\'']).to_owned());
    }
    release
}
