//! Small files of the state folder that must survive a power cut: whole, or not there at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Largest file that is read back.
const MAX_BYTES: u64 = 1 << 20;
/// Mode of what nobody else may read.
pub(crate) const PRIVATE: u32 = 0o600;
/// Mode of what everybody may read.
pub(crate) const PUBLIC: u32 = 0o644;

/// The same error, with what was being done before it.
pub(crate) fn context(what: &str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let what = format!("{what} {}", path.display());
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The file's contents; `None` where there is no file.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(context("opening", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(context("reading", path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("{} is too large", path.display())));
    }
    Ok(Some(bytes))
}

/// The file's contents; made and written first where there is no file.
pub(crate) fn read_or_create(
    path: &Path,
    mode: u32,
    make: impl FnOnce() -> io::Result<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    if let Some(bytes) = read(path)? {
        return Ok(bytes);
    }
    let bytes = make()?;
    write(path, mode, &bytes)?;
    Ok(bytes)
}

/// Replaces the file; durable when it returns.
pub(crate) fn write(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(context("making", folder))?;
    let temporary = path.with_added_extension("new");
    // What a killed process left there may have another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(context("removing", &temporary)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(context("making", &temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(context("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(context("renaming", &temporary))?;
    sync_folder(folder)
}

/// Makes names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(context("syncing", folder))
}

/// Fresh random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| io::Error::other("the operating system gives no random numbers"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_made_once_with_its_mode_whatever_a_killed_process_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/file.key");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path.with_added_extension("new"), b"half of").unwrap();
        let first = read_or_create(&path, PRIVATE, || Ok(b"one".to_vec())).unwrap();
        let again = read_or_create(&path, PRIVATE, || Ok(b"two".to_vec())).unwrap();
        assert_eq!((first.as_slice(), again.as_slice()), (&b"one"[..], &b"one"[..]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert!(!path.with_added_extension("new").exists());
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
