//! The controller's image store: captured disks, one file each, sent and fetched by utility VMs.
//!
//! A utility VM is let in by a value that its job carries: good for one verb on one image, and made again for every
//! job. A file under an image's name is always whole: what arrives is written beside it and renamed once it is durable.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind as IoErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use sha2::{Digest, Sha256};

use crate::durable;
use crate::model::Id;

/// Name of the secret's file in the state folder.
pub const SECRET_FILE: &str = "blobs.key";
/// Scheme of the `Authorization` header.
const SCHEME: &str = "UVM-Blob ";
/// Ending of a file that is still arriving.
const ARRIVING: &str = "arriving";
/// Room that stays free: the store lies on the same file system, and must be able to go on.
const KEPT_FREE: u64 = 256 << 20;
/// Bytes written between two looks at the room that is left.
const LOOK_EVERY: u64 = 64 << 20;
/// Images that may arrive at once.
const MAX_ARRIVING: usize = 32;
const BUFFER: usize = 256 << 10;

/// What a utility VM may do with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Fetch it.
    Get,
    /// Send it.
    Put,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
        }
    }
}

/// What to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such image.
    NotFound,
    /// There is no room for it.
    OutOfSpace,
    /// Too many images arrive at once.
    Overloaded,
    /// The sender broke off.
    Interrupted,
    /// The file system failed.
    Failed,
}

/// Why something was not done.
#[derive(Debug)]
pub struct Error {
    /// What to branch on.
    pub kind: ErrorKind,
    /// What was being done.
    pub context: String,
    /// Why it failed.
    pub source: Option<io::Error>,
}

impl Error {
    fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    fn of_file(context: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            IoErrorKind::NotFound => ErrorKind::NotFound,
            IoErrorKind::StorageFull | IoErrorKind::QuotaExceeded => ErrorKind::OutOfSpace,
            _ => ErrorKind::Failed,
        };
        Self { kind, context: context.into(), source: Some(source) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

type Result<T> = std::result::Result<T, Error>;

/// An image that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// `sha256:…` of what arrived.
    pub digest: String,
    /// Its size.
    pub size_bytes: u64,
}

/// The secret in that state folder, made where there is none.
pub fn secret(folder: &Path) -> io::Result<Vec<u8>> {
    durable::read_or_create(&folder.join(SECRET_FILE), durable::PRIVATE, || {
        Ok(durable::random::<32>()?.to_vec())
    })
}

/// See the module.
pub struct Blobs {
    folder: PathBuf,
    key: hmac::Key,
    arriving: AtomicUsize,
    /// Numbers the files that arrive.
    count: AtomicU64,
}

impl Blobs {
    /// The store in that folder, made where there is none; what never arrived whole is removed.
    pub fn open(folder: &Path, secret: &[u8]) -> io::Result<Self> {
        fs::create_dir_all(folder).map_err(durable::context("making", folder))?;
        for entry in fs::read_dir(folder).map_err(durable::context("reading", folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == ARRIVING) {
                fs::remove_file(&path).map_err(durable::context("removing", &path))?;
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
            arriving: AtomicUsize::new(0),
            count: AtomicU64::new(0),
        })
    }

    /// The value of the `Authorization` header that lets its bearer do this with that image, and nothing else.
    pub fn authorization(&self, verb: Verb, image: Id) -> String {
        let tag = hmac::sign(&self.key, allowed(verb, image).as_bytes());
        format!("{SCHEME}{}", URL_SAFE_NO_PAD.encode(tag))
    }

    /// Whether the value of an `Authorization` header allows that.
    pub fn check(&self, authorization: &str, verb: Verb, image: Id) -> bool {
        let tag = authorization.strip_prefix(SCHEME).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        tag.is_some_and(|tag| hmac::verify(&self.key, allowed(verb, image).as_bytes(), &tag).is_ok())
    }

    /// Takes an image to the reader's end. It replaces what was there once it is whole and durable; where the reader
    /// fails, nothing of it is left.
    pub fn put(&self, image: Id, reader: &mut dyn Read) -> Result<Stored> {
        let _slot = Slot::take(&self.arriving)?;
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{image}.{number}.{ARRIVING}"));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(durable::PRIVATE)
            .open(&path)
            .map_err(|error| Error::of_file(format!("making a file for image {image}"), error))?;
        let result = self.receive(image, reader, &mut file).and_then(|stored| {
            let of_file = |error| Error::of_file(format!("keeping image {image}"), error);
            file.sync_all().map_err(of_file)?;
            fs::rename(&path, self.path(image)).map_err(of_file)?;
            durable::sync_folder(&self.folder).map_err(of_file)?;
            Ok(stored)
        });
        if result.is_err() {
            // Where this fails too, the next start removes it.
            let _ = fs::remove_file(&path);
        }
        result
    }

    fn receive(&self, image: Id, reader: &mut dyn Read, file: &mut File) -> Result<Stored> {
        let (mut hash, mut size_bytes, mut looked_at) = (Sha256::new(), 0_u64, None);
        let mut buffer = vec![0; BUFFER];
        loop {
            if looked_at.is_none_or(|at| size_bytes - at >= LOOK_EVERY) {
                self.check_room(image, LOOK_EVERY)?;
                looked_at = Some(size_bytes);
            }
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == IoErrorKind::Interrupted => continue,
                Err(error) => {
                    let context = format!("image {image} broke off after {size_bytes} bytes");
                    return Err(Error { kind: ErrorKind::Interrupted, context, source: Some(error) });
                }
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            hash.update(bytes);
            file.write_all(bytes).map_err(|error| Error::of_file(format!("writing image {image}"), error))?;
            size_bytes += count as u64;
        }
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Stored { digest: format!("sha256:{digest}"), size_bytes })
    }

    fn check_room(&self, image: Id, bytes: u64) -> Result<()> {
        let room = rustix::fs::statvfs(&self.folder)
            .map_err(|error| Error::of_file("asking for the room that is left", error.into()))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if free < KEPT_FREE + bytes {
            let context = format!(
                "image {image}: {} MiB are free in {}, of which {} MiB stay free",
                free >> 20,
                self.folder.display(),
                KEPT_FREE >> 20
            );
            return Err(Error::new(ErrorKind::OutOfSpace, context));
        }
        Ok(())
    }

    /// The whole image, to be read.
    pub fn open_image(&self, image: Id) -> Result<File> {
        File::open(self.path(image)).map_err(|error| Error::of_file(format!("opening image {image}"), error))
    }

    /// Deletes an image; one that is not there is deleted already.
    pub fn delete(&self, image: Id) -> Result<()> {
        let of_file = |error| Error::of_file(format!("deleting image {image}"), error);
        match fs::remove_file(self.path(image)) {
            Ok(()) => durable::sync_folder(&self.folder).map_err(of_file),
            Err(error) if error.kind() == IoErrorKind::NotFound => Ok(()),
            Err(error) => Err(of_file(error)),
        }
    }

    /// The images there are, in no order.
    pub fn images(&self) -> Result<Vec<Id>> {
        let of_file = |error| Error::of_file("listing the images", error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(of_file)? {
            let name = entry.map_err(of_file)?.file_name();
            found.extend(name.to_str().and_then(|name| name.parse::<Id>().ok()));
        }
        Ok(found)
    }

    fn path(&self, image: Id) -> PathBuf {
        self.folder.join(image.to_string())
    }
}

/// What is signed.
fn allowed(verb: Verb, image: Id) -> String {
    format!("{} {image}", verb.name())
}

/// One of the images that may arrive at once.
struct Slot<'a>(&'a AtomicUsize);

impl<'a> Slot<'a> {
    fn take(arriving: &'a AtomicUsize) -> Result<Self> {
        let slot = Self(arriving);
        if arriving.fetch_add(1, Ordering::AcqRel) >= MAX_ARRIVING {
            return Err(Error::new(ErrorKind::Overloaded, format!("{MAX_ARRIVING} images arrive already")));
        }
        Ok(slot)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn id(byte: u8) -> Id {
        Id::new(1_700_000_000_000, [byte; 10])
    }

    fn open() -> (tempfile::TempDir, Blobs) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&folder.path().join("images"), &secret(folder.path()).unwrap()).unwrap();
        (folder, blobs)
    }

    fn files(folder: &tempfile::TempDir) -> usize {
        fs::read_dir(folder.path().join("images")).unwrap().count()
    }

    #[test]
    fn an_authorization_is_good_for_one_verb_on_one_image() {
        let (folder, blobs) = open();
        let value = blobs.authorization(Verb::Put, id(1));
        assert!(value.starts_with("UVM-Blob ") && value.is_ascii());
        assert!(blobs.check(&value, Verb::Put, id(1)));
        assert!(!blobs.check(&value, Verb::Get, id(1)));
        assert!(!blobs.check(&value, Verb::Put, id(2)));
        for bad in ["", "UVM-Blob ", "UVM-Blob ä", "UVM-Blob AAAA", &value[9..], &value[..value.len() - 1]] {
            assert!(!blobs.check(bad, Verb::Put, id(1)), "{bad:?}");
        }
        let again = Blobs::open(&folder.path().join("images"), &secret(folder.path()).unwrap()).unwrap();
        assert!(again.check(&value, Verb::Put, id(1)), "it holds over a restart");
        let other = open();
        assert!(!other.1.check(&value, Verb::Put, id(1)), "another controller's is not ours");
        let mode = fs::metadata(folder.path().join(SECRET_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_arrives_is_kept_whole_under_its_digest() {
        let (_folder, blobs) = open();
        let bytes: Vec<u8> = (0..BUFFER * 2 + 77).map(|at| (at % 251) as u8).collect();
        let stored = blobs.put(id(1), &mut &bytes[..]).unwrap();
        let expected: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(stored.digest, format!("sha256:{expected}"));
        assert_eq!(stored.size_bytes, bytes.len() as u64);
        let mut read = Vec::new();
        blobs.open_image(id(1)).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == bytes);
        // Sent once more, by a job that was begun again.
        assert_eq!(blobs.put(id(1), &mut &b"shorter"[..]).unwrap().size_bytes, 7);
        assert_eq!(blobs.open_image(id(1)).unwrap().metadata().unwrap().len(), 7);
        assert_eq!(blobs.images().unwrap(), [id(1)]);
        blobs.delete(id(1)).unwrap();
        blobs.delete(id(1)).unwrap();
        assert_eq!(blobs.open_image(id(1)).unwrap_err().kind, ErrorKind::NotFound);
    }

    /// Gives some bytes and then fails.
    struct Breaking(usize);

    impl Read for Breaking {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or_else(|| io::Error::other("the line is dead"))?;
            Ok(buffer.len())
        }
    }

    #[test]
    fn what_breaks_off_leaves_nothing_and_takes_nothing_away() {
        let (folder, blobs) = open();
        let mut reader = Breaking(3);
        let error = blobs.put(id(1), &mut reader).unwrap_err();
        assert_eq!((error.kind, reader.0), (ErrorKind::Interrupted, 0), "the fault fired");
        assert_eq!(files(&folder), 0);
        blobs.put(id(1), &mut &b"whole"[..]).unwrap();
        blobs.put(id(1), &mut Breaking(1)).unwrap_err();
        assert_eq!(blobs.open_image(id(1)).unwrap().metadata().unwrap().len(), 5);
        assert_eq!(files(&folder), 1);
    }

    #[test]
    fn leftovers_of_a_killed_controller_are_removed_and_images_stay() {
        let (folder, blobs) = open();
        blobs.put(id(1), &mut &b"whole"[..]).unwrap();
        fs::write(folder.path().join(format!("images/{}.0.{ARRIVING}", id(2))), b"half").unwrap();
        assert_eq!(files(&folder), 2);
        let blobs = Blobs::open(&folder.path().join("images"), b"secret").unwrap();
        assert_eq!((files(&folder), blobs.images().unwrap()), (1, vec![id(1)]));
    }

    #[test]
    fn the_last_room_is_not_used_up() {
        let (_folder, blobs) = open();
        blobs.check_room(id(1), 0).unwrap();
        let error = blobs.check_room(id(1), u64::MAX - KEPT_FREE).unwrap_err();
        assert_eq!(error.kind, ErrorKind::OutOfSpace, "{error}");
    }

    #[test]
    fn so_many_and_no_more_arrive_at_once() {
        let (_folder, blobs) = open();
        let slots: Vec<_> = (0..MAX_ARRIVING).map(|_| Slot::take(&blobs.arriving).unwrap()).collect();
        assert_eq!(blobs.put(id(1), &mut &b""[..]).unwrap_err().kind, ErrorKind::Overloaded);
        drop(slots);
        blobs.put(id(1), &mut &b""[..]).unwrap();
    }
}
