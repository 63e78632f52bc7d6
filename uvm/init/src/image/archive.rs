//! A tar of the host, as it is or compressed: nobody has promised a digest of it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

/// The largest Zstandard window, as a power of two: 128 MiB, what `zstd -d` takes without being told to.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes that tell a compression, or none.
const MAGIC_BYTES: usize = 6;

/// An archive that is open, and has been looked at as far as its compression.
pub(crate) struct Archive {
    path: PathBuf,
    reader: Box<dyn Read>,
}

impl Archive {
    /// Opens a file, or standard input where `path` is `-`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut source: Box<dyn Read> =
            if path == Path::new("-") { Box::new(io::stdin().lock()) } else { Box::new(File::open(path)?) };
        let mut magic = Vec::with_capacity(MAGIC_BYTES);
        source.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut magic)?;
        let compression = Compression::of(&magic);
        let source = io::Cursor::new(magic).chain(source);
        let source = BufReader::with_capacity(BUFFER_BYTES, source);
        let reader: Box<dyn Read> = match compression {
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
        Ok(Self { path: path.to_owned(), reader })
    }

    /// The path it was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
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
