//! `uvm mkfs`: a file system on a device or in a file, empty or filled from archives.

mod arguments;
mod make;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use self::arguments::Kind;
pub(super) use self::arguments::MkfsArguments;
use super::DONE;
use super::failure::Failure;
use crate::adapter::host::Target;
use crate::image::{Archive, is_stdin};

/// Most archives of one file system: as many as overlay file systems have layers.
const MAX_ARCHIVES: usize = 128;

/// Makes the file system; the exit status.
pub(super) fn mkfs(arguments: &MkfsArguments) -> u8 {
    match try_mkfs(&arguments.kind) {
        Ok(line) => {
            say!("{line}");
            DONE
        }
        Err(failure) => failure.say(),
    }
}

/// What was made, for people.
fn try_mkfs(kind: &Kind) -> Result<String, Failure> {
    let common = kind.target();
    let path = common.path.as_path();
    let clock = clock().map_err(|reason| Failure::refused(path, reason))?;
    let archives = open_archives(kind.archives())?;
    if let Some(archive) = archives.iter().find(|archive| archive.is_at(path)) {
        return Err(Failure::refused(
            archive.path(),
            "the archive would be overwritten with its own contents",
        ));
    }
    let target = Target::open(path, common.size, common.logical_block_size)
        .map_err(|error| Failure::refused(path, error))?;
    if !common.force {
        refuse_contents(path, &target)?;
    }
    let made = make::make(kind, &target, clock, archives);
    made.map_err(|error| {
        Failure::ended(path, target.is_written(), &*error).when_written("it holds no file system now")
    })
}

fn open_archives(paths: &[std::path::PathBuf]) -> Result<Vec<Archive>, Failure> {
    if paths.len() > MAX_ARCHIVES {
        let reason = format!("{} archives; at most {MAX_ARCHIVES} are taken", paths.len());
        return Err(Failure::refused(&paths[MAX_ARCHIVES], reason));
    }
    if paths.iter().filter(|path| is_stdin(path)).count() > 1 {
        return Err(Failure::refused(Path::new("-"), "standard input is one archive, not several"));
    }
    let open = |path: &std::path::PathBuf| Archive::open(path).map_err(|error| Failure::refused(path, error));
    paths.iter().map(open).collect()
}

/// A device that holds something is not formatted unasked.
fn refuse_contents(path: &Path, target: &Target) -> Result<(), Failure> {
    let found = uvm_disk::probe::probe(&*target.device);
    let found = found.map_err(|error| Failure::ended(path, false, &error))?;
    let contents = match (&found.file_system, found.table) {
        (Some(found), _) => {
            let label = found.label.as_ref().map_or(String::new(), |label| format!(" labelled {label:?}"));
            let uuid = found.uuid.as_ref().map_or(String::new(), |uuid| format!(", {uuid}"));
            format!("{}{label}{uuid}", found.kind)
        }
        (None, uvm_disk::probe::TableKind::Gpt) => {
            format!("a GPT with {} partitions", found.partitions.len())
        }
        (None, uvm_disk::probe::TableKind::Mbr) => {
            format!("an MBR with {} partitions", found.partitions.len())
        }
        (None, uvm_disk::probe::TableKind::None) => return Ok(()),
    };
    Err(Failure::refused(path, format!("it holds {contents}; --force takes that away")))
}

/// Seconds since 1970: `SOURCE_DATE_EPOCH` where it is set (reproducible-builds.org), else now.
fn clock() -> Result<u64, String> {
    let Some(value) = std::env::var_os("SOURCE_DATE_EPOCH") else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        return now.map(|since| since.as_secs()).map_err(|_| "the clock is before 1970; set it".to_owned());
    };
    let number = value.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| format!("SOURCE_DATE_EPOCH={}: seconds since 1970 are expected", value.display()))
}
