//! A tar of the host, as it is or compressed: nobody has promised a digest of it.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use uvm_guest::layer;

/// The largest Zstandard window, as a power of two: 128 MiB, what `zstd -d` takes without being told to.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes that tell a compression, or none.
const MAGIC_BYTES: usize = 6;

/// Bytes that tell a tar archive.
const BLOCK_BYTES: usize = 512;

/// An archive that is open, and has been looked at as far as the first header in it.
pub(crate) struct Archive {
    path: PathBuf,
    metadata: Metadata,
    reader: Box<dyn Read>,
}

impl Archive {
    /// Opens a file, or standard input where `path` is `-`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut source = if is_stdin(path) {
            File::from(io::stdin().as_fd().try_clone_to_owned()?)
        } else {
            File::open(path)?
        };
        let metadata = source.metadata()?;
        let mut magic = Vec::with_capacity(MAGIC_BYTES);
        source.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut magic)?;
        let compression = Compression::of(&magic);
        let source = io::Cursor::new(magic).chain(source);
        let source = BufReader::with_capacity(BUFFER_BYTES, source);
        let mut reader: Box<dyn Read> = match compression {
            Compression::None => Box::new(source),
            Compression::Gzip => Box::new(MultiGzDecoder::new(source)),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            Compression::Unknown(name) => {
                let reason =
                    format!("compressed by {name}; unpack it before: {name} -dc FILE | uvm … --from-tar -");
                return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
            }
        };
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        reader.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
        if !block.first_chunk().is_some_and(layer::begins_archive) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no tar archive"));
        }
        let reader = Box::new(io::Cursor::new(block).chain(reader));
        Ok(Self { path: path.to_owned(), metadata, reader })
    }

    /// Whether `path` is the very file or device that the archive is read from.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        path.metadata().is_ok_and(|other| {
            let (same, device) =
                (&self.metadata, |metadata: &Metadata| metadata.file_type().is_block_device());
            (same.dev(), same.ino()) == (other.dev(), other.ino())
                || device(same) && device(&other) && same.rdev() == other.rdev()
        })
    }

    /// The path it was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether it is read from standard input, which there is once.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

impl Read for Archive {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf)
    }
}

enum Compression {
    None,
    Gzip,
    Zstd,
    Unknown(&'static str),
}

impl Compression {
    /// By the first bytes: RFC 1952, RFC 8878, and what xz and bzip2 begin with.
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Self::Unknown("xz"),
            [b'B', b'Z', b'h', ..] => Self::Unknown("bzip2"),
            _ => Self::None,
        }
    }
}
