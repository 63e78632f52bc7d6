//! The cache outside the clone: `$UVM_CACHE`, else `$XDG_CACHE_HOME/uvm`, else `~/.cache/uvm`.
//!
//! An entry is a folder named by the hash of what made it. It is built under another name and renamed when it is
//! complete, so what bears an entry's name is whole, whatever interrupted a run. A lock per entry makes a second run
//! wait for the first one's result instead of doing the same work beside it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// The cache's folder.
pub(crate) fn root() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = if let Some(path) = variable("UVM_CACHE") {
        path
    } else if let Some(path) = variable("XDG_CACHE_HOME") {
        path.join("uvm")
    } else if let Some(path) = variable("HOME") {
        path.join(".cache/uvm")
    } else {
        bail!("no folder for the cache: set UVM_CACHE");
    };
    std::path::absolute(&root).with_context(|| format!("finding the cache {}", root.display()))
}

/// The key of what `parts` make: the same parts in the same order give the same key.
pub(crate) fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // The length keeps ("ab", "c") apart from ("a", "bc").
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut key = hex(&hash.finalize());
    key.truncate(32);
    key
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folder of the entry `kind`/`key`, made by `build` in an empty folder if it is not there yet.
pub(crate) fn entry(kind: &str, key: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    entry_in(&root()?.join(kind), key, build)
}

fn entry_in(shelf: &Path, key: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let done = shelf.join(key);
    if done.is_dir() {
        return Ok(done);
    }
    fs::create_dir_all(shelf).with_context(|| format!("making {}", shelf.display()))?;
    let _lock = lock(&shelf.join(format!(".{key}.lock")))?;
    if done.is_dir() {
        return Ok(done);
    }
    remove_interrupted(shelf, key)?;
    let partial = shelf.join(format!(".{key}.{}.partial", std::process::id()));
    fs::create_dir(&partial).with_context(|| format!("making {}", partial.display()))?;
    if let Err(error) = build(&partial) {
        // The first cause is what the reader needs; what cannot be removed now, the next run removes.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    fs::rename(&partial, &done).with_context(|| format!("completing {}", done.display()))?;
    Ok(done)
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => println!("another run is making the same; waiting for it"),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("locking {}", path.display()));
        }
    }
    file.lock().with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// Removes what interrupted runs left of the entry `own`, whose lock the caller holds, and of those nobody makes now.
fn remove_interrupted(shelf: &Path, own: &str) -> Result<()> {
    for item in fs::read_dir(shelf).with_context(|| format!("listing {}", shelf.display()))? {
        let path = item?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".partial")) else {
            continue;
        };
        let Some((key, _process)) = name.rsplit_once('.') else { continue };
        let other = if key == own { None } else { Some(File::create(shelf.join(format!(".{key}.lock")))?) };
        if other.as_ref().is_none_or(|lock| lock.try_lock().is_ok()) {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Copies `from` to `to` such that `to` is either the old file or the whole new one.
pub(crate) fn copy_whole(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension(format!("{}.partial", std::process::id()));
    fs::copy(from, &partial)
        .with_context(|| format!("copying {} to {}", from.display(), partial.display()))?;
    fs::rename(&partial, to).with_context(|| format!("completing {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_build_leaves_nothing_and_the_next_one_completes() {
        let shelf = tempfile::tempdir().unwrap();
        let failed = entry_in(shelf.path(), "k", |dir| {
            fs::write(dir.join("half"), "x")?;
            bail!("cut")
        });
        assert_eq!(failed.unwrap_err().to_string(), "cut");
        assert!(!shelf.path().join("k").exists());
        // A killed run leaves its folder; it must not become part of the entry.
        for name in [".k.1.partial", ".other.1.partial", ".busy.1.partial"] {
            fs::create_dir(shelf.path().join(name)).unwrap();
        }
        let busy = lock(&shelf.path().join(".busy.lock")).unwrap();
        let made = entry_in(shelf.path(), "k", |dir| Ok(fs::write(dir.join("whole"), "x")?)).unwrap();
        assert!(made.join("whole").exists() && !made.join("half").exists());
        assert!(!shelf.path().join(".k.1.partial").exists());
        assert!(!shelf.path().join(".other.1.partial").exists());
        assert!(shelf.path().join(".busy.1.partial").exists());
        drop(busy);
        entry_in(shelf.path(), "k", |_| panic!("a complete entry is not built again")).unwrap();
    }

    #[test]
    fn two_runs_side_by_side_build_once() {
        let shelf = tempfile::tempdir().unwrap();
        let builds = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    entry_in(shelf.path(), "k", |dir| {
                        builds.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(50));
                        Ok(fs::write(dir.join("whole"), "x")?)
                    })
                    .unwrap()
                });
            }
        });
        assert_eq!(builds.into_inner(), 1);
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(key([&b"ab"[..], b"c"]), key([&b"a"[..], b"bc"]));
        assert_eq!(key([&b"a"[..]]).len(), 32);
    }
}
