//! The folder of a node, and how files in it are written so that a power cut leaves the old or the new one.
//!
//! ```text
//! lock                           held by the controller that looks after the node
//! pool/<volume>.raw              volumes, sparse
//! domains/<id>/definition.json   what is wanted and what was started, 0600
//! domains/<id>/config            configuration handed to a utility VM, 0600
//! domains/<id>/vars.fd           the firmware's memory
//! domains/<id>/{qmp.sock,pid,qemu.log,serial.log}
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind as IoErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::hypervisor::{Error, ErrorKind, Result};
use crate::model::Id;

/// Bytes of a Unix socket's path at most.
const MAX_SOCKET_PATH: usize = 107;
const BEGUN: &str = ".new";

/// An I/O error in the words of the hypervisor.
pub(super) fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        IoErrorKind::StorageFull | IoErrorKind::QuotaExceeded | IoErrorKind::OutOfMemory => {
            ErrorKind::NoResources
        }
        _ => ErrorKind::Failed,
    };
    Error::new(kind, format!("{what} {}: {error}", path.display()))
}

/// The folder of a node.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    /// Held as long as the manager lives.
    _lock: File,
}

impl Folder {
    /// Makes what is missing, takes the lock, and clears what was begun and not finished.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let make = |path: &Path| {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|error| failed("making", path, &error))
        };
        make(root)?;
        let root = root.canonicalize().map_err(|error| failed("finding", root, &error))?;
        let path = root.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(|error| failed("opening", &path, &error))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let message = format!("{} is looked after by another controller", root.display());
            return Err(Error::new(ErrorKind::WrongState, message));
        }
        let folder = Self { root, _lock: lock };
        let socket = folder.socket(Id::default());
        if socket.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
            let most = MAX_SOCKET_PATH - (socket.as_os_str().len() - folder.root.as_os_str().len());
            let message = format!(
                "the path {} is too long: sockets in it need one of at most {most} bytes",
                folder.root.display()
            );
            return Err(Error::new(ErrorKind::WrongState, message));
        }
        for path in [folder.pool(), folder.domains()] {
            make(&path)?;
        }
        folder.clear_begun_volumes()?;
        Ok(folder)
    }

    fn clear_begun_volumes(&self) -> Result<()> {
        let pool = self.pool();
        for entry in fs::read_dir(&pool).map_err(|error| failed("reading", &pool, &error))? {
            let path = entry.map_err(|error| failed("reading", &pool, &error))?.path();
            if path.as_os_str().as_bytes().ends_with(BEGUN.as_bytes()) {
                fs::remove_file(&path).map_err(|error| failed("removing", &path, &error))?;
            }
        }
        Ok(())
    }

    pub(super) fn pool(&self) -> PathBuf {
        self.root.join("pool")
    }

    pub(super) fn volume(&self, id: Id) -> PathBuf {
        self.pool().join(format!("{id}.raw"))
    }

    pub(super) fn domains(&self) -> PathBuf {
        self.root.join("domains")
    }

    pub(super) fn domain(&self, id: Id) -> PathBuf {
        self.domains().join(id.to_string())
    }

    pub(super) fn definition(&self, id: Id) -> PathBuf {
        self.domain(id).join("definition.json")
    }

    pub(super) fn config(&self, id: Id) -> PathBuf {
        self.domain(id).join("config")
    }

    pub(super) fn vars(&self, id: Id) -> PathBuf {
        self.domain(id).join("vars.fd")
    }

    pub(super) fn socket(&self, id: Id) -> PathBuf {
        self.domain(id).join("qmp.sock")
    }

    pub(super) fn pid(&self, id: Id) -> PathBuf {
        self.domain(id).join("pid")
    }

    pub(super) fn log(&self, id: Id) -> PathBuf {
        self.domain(id).join("qemu.log")
    }

    pub(super) fn serial_log(&self, id: Id) -> PathBuf {
        self.domain(id).join("serial.log")
    }
}

/// Makes entries of a folder durable.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|error| failed("syncing", path, &error))
}

/// A file that only we may read: there as it was, or whole with these contents.
pub(super) fn write_private(path: &Path, contents: &[u8]) -> Result<()> {
    make_whole(path, |file| file.write_all(contents))
}

/// A file that is there once `fill` has filled it.
pub(super) fn make_whole(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(BEGUN);
    let begun = PathBuf::from(name);
    let made = (|| {
        match fs::remove_file(&begun) {
            Err(error) if error.kind() != IoErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&begun)?;
        fill(&mut file)?;
        file.sync_all()?;
        fs::rename(&begun, path)
    })();
    if let Err(error) = made {
        // Nothing durable names it; what cannot be removed now is cleared when the folder is opened again.
        let _ = fs::remove_file(&begun);
        return Err(failed("writing", path, &error));
    }
    sync_folder(path.parent().expect("every file is in the node's folder"))
}

/// A file whose absence is what is wanted.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path.parent().expect("every file is in the node's folder")),
        Err(error) if error.kind() == IoErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("removing", path, &error)),
    }
}
