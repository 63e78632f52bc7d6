//! The tar stream beneath a layer: headers, PAX records, sparse maps, contents and the end marker.
//!
//! POSIX.1-2017 `pax` (ustar and PAX), GNU tar's long names, old GNU sparse and PAX sparse 0.0, 0.1 and 1.0.
//! The `tar` crate
//! reads the header's fields. The loop around it is ours: the crate takes an early end for the end of the
//! archive, splits PAX records at newlines inside a value, and reads extended headers without a limit.

use std::io::{self, Read};
use std::ops::{ControlFlow, Range};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::fields;
use super::pax::{Extended, decimal, pax_records, refuse_global};
use super::{Limits, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::path::printable;
use crate::tree::{Attributes, Kind, Timestamp};

const BLOCK: u64 = 512;
/// Longest name in a GNU long name record; a path is never longer than this.
const MAX_LONG_NAME: u64 = 64 << 10;
/// Extents of one sparse file: 4 MiB of memory.
pub(super) const MAX_EXTENTS: usize = 256 << 10;
/// Zeroes after the end marker. Writers pad to their blocking factor, which is far less.
const MAX_PADDING: u64 = 64 << 20;
/// Bytes of the stream between two reports of progress.
const REPORT_EVERY: u64 = 256 << 10;

/// What an entry of the archive makes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A file; its contents follow.
    File,
    Directory,
    Symlink,
    HardLink,
    Special(Kind),
}

/// One entry, extended headers already folded in. Names are as the archive has them: unchecked.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) item: Item,
    pub(super) attributes: Attributes,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the file as the guest sees it, holes included.
    pub(super) size: u64,
    /// Where the stored bytes belong, ascending and apart; the rest is a hole.
    pub(super) data: Vec<Range<u64>>,
    /// Bytes after the contents, up to the next block.
    padding: u64,
}

pub(super) struct Archive<'a> {
    reader: &'a mut dyn Read,
    limits: &'a Limits,
    progress: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
    pub(super) state: Progress,
    reported: u64,
}

impl<'a> Archive<'a> {
    pub(super) fn new(
        reader: &'a mut dyn Read,
        limits: &'a Limits,
        progress: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Self {
        Self { reader, limits, progress, state: Progress::default(), reported: 0 }
    }

    /// The next entry, or `None` after an end marker that is really there.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extended = Extended::default();
        let mut pending = false;
        let mut room = self.limits.extended_header_bytes;
        loop {
            let mut header = Header::new_old();
            self.block(header.as_mut_bytes())?;
            if header.as_bytes().iter().all(|b| *b == 0) {
                if pending {
                    return Err(corrupt("the archive ends after an extended header"));
                }
                return Ok(None);
            }
            self.check_sum(&header)?;
            self.count_entry()?;
            let size = fields::number("size", &header.as_old().size)?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.extended_header(size, room)?;
                    room -= size;
                    pax_records(&records, &mut |key, value| extended.pax(key, value))?;
                }
                EntryType::XGlobalHeader => {
                    let records = self.extended_header(size, self.limits.extended_header_bytes)?;
                    pax_records(&records, &mut refuse_global)?;
                    continue;
                }
                EntryType::GNULongName => extended.path = Some(self.long_name(size)?),
                EntryType::GNULongLink => extended.link = Some(self.long_name(size)?),
                _ => return self.entry(&header, extended).map(Some),
            }
            pending = true;
        }
    }

    fn entry(&mut self, header: &Header, extended: Extended) -> Result<Entry> {
        let path = extended
            .sparse_name
            .clone()
            .or(extended.path.clone())
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let named = |e: Error| e.within(format!("reading the layer's entry {}", printable(&path)));
        let header_size = fields::number("size", &header.as_old().size).map_err(named)?;
        let mut entry = Entry {
            link: extended
                .link
                .clone()
                .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned()),
            item: item(header, &path).map_err(named)?,
            attributes: attributes(header, &extended).map_err(named)?,
            xattrs: Vec::new(),
            size: extended.size.unwrap_or(header_size),
            data: Vec::new(),
            padding: 0,
            path: Vec::new(),
        };
        self.lay_out(header, &extended, &mut entry).map_err(named)?;
        self.check_size(&entry).map_err(named)?;
        entry.xattrs = extended.into_xattrs().map_err(named)?;
        entry.path = path;
        Ok(entry)
    }

    /// Finds out which bytes of the stream are the entry's, and where they go.
    fn lay_out(&mut self, header: &Header, extended: &Extended, entry: &mut Entry) -> Result<()> {
        let stored = entry.size;
        if entry.item != Item::File {
            // POSIX gives the size of these a meaning that is none here: of a directory the room it may take.
            if matches!(
                header.entry_type(),
                EntryType::Directory | EntryType::Fifo | EntryType::Char | EntryType::Block
            ) {
                entry.size = 0;
            } else if stored != 0 {
                return Err(corrupt("an entry that is no file carries contents"));
            }
            return Ok(());
        }
        entry.padding = stored.wrapping_neg() % BLOCK;
        let mut map_bytes = 0;
        let real_size =
            || extended.sparse_real_size.ok_or_else(|| corrupt("a PAX sparse file without its size"));
        let map = if header.entry_type() == EntryType::GNUSparse {
            let gnu = header.as_gnu().ok_or_else(|| corrupt("a sparse entry without a GNU header"))?;
            entry.size = fields::number("realsize", &gnu.realsize)?;
            self.gnu_extents(gnu)?
        } else if let Some((major, minor)) = &extended.sparse_version {
            if (major.as_slice(), minor.as_slice()) != (b"1", b"0") {
                let version = format!("{}.{}", printable(major), printable(minor));
                return Err(unsupported(format!("PAX sparse format {version}")));
            }
            entry.size = real_size()?;
            let (map, taken) = self.pax_extents(stored)?;
            map_bytes = taken;
            map
        } else if let Some(numbers) = &extended.sparse_map {
            if numbers.len() % 2 != 0 {
                return Err(corrupt("a PAX sparse map that ends within a pair"));
            }
            entry.size = real_size()?;
            numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
        } else if extended.sparse_real_size.is_some() {
            return Err(corrupt("a PAX sparse file without a map"));
        } else {
            entry.data = std::iter::once(0..stored).collect();
            return Ok(());
        };
        entry.data = check_extents(&map, entry.size, stored.saturating_sub(map_bytes))?;
        Ok(())
    }

    fn gnu_extents(&mut self, gnu: &tar::GnuHeader) -> Result<Vec<(u64, u64)>> {
        let mut extents = Vec::new();
        gnu_extents_into(&gnu.sparse, &mut extents)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.block(block.as_mut_bytes())?;
            gnu_extents_into(block.sparse(), &mut extents)?;
            more = block.is_extended();
            if extents.len() > MAX_EXTENTS {
                return Err(Error::new(ErrorKind::TooLarge, "a sparse file has too many extents"));
            }
        }
        Ok(extents)
    }

    /// PAX sparse 1.0: decimal lines at the head of the contents, padded to a block. Returns the extents and the
    /// bytes the map took.
    fn pax_extents(&mut self, stored: u64) -> Result<(Vec<(u64, u64)>, u64)> {
        let mut taken = 0;
        let mut numbers: Vec<u64> = Vec::new();
        let mut digits = Vec::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            if taken + BLOCK > stored {
                return Err(corrupt("the sparse map is longer than the entry"));
            }
            let mut block = [0; BLOCK as usize];
            self.block(&mut block)?;
            taken += BLOCK;
            for byte in block {
                match byte {
                    _ if numbers.len() == wanted => break,
                    b'\n' => {
                        numbers.push(decimal(&digits)?);
                        digits.clear();
                        if numbers.len() == 1 {
                            let count = usize::try_from(numbers[0]).unwrap_or(usize::MAX);
                            if count > MAX_EXTENTS {
                                return Err(Error::new(
                                    ErrorKind::TooLarge,
                                    "a sparse file has too many extents",
                                ));
                            }
                            wanted += 2 * count;
                        }
                    }
                    _ if digits.len() > 20 => return Err(corrupt("a number in a sparse map is too long")),
                    digit => digits.push(digit),
                }
            }
        }
        Ok((numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(), taken))
    }

    /// The contents of `entry`, which must be the last one returned.
    pub(super) fn contents<'b>(&'b mut self, entry: &'b Entry) -> Contents<'b, 'a> {
        let stored = entry.data.iter().map(|data| data.end - data.start).sum();
        Contents { archive: self, entry, stored, left: stored, failure: None }
    }

    /// Reads what follows the end marker, so that a digest over the stream sees all of it.
    pub(super) fn drain(&mut self) -> Result<()> {
        let start = self.state.stream_bytes;
        let mut buffer = [0; 16 << 10];
        loop {
            let read = self.read_some(&mut buffer)?;
            if read == 0 {
                break;
            }
            if buffer[..read].iter().any(|b| *b != 0) {
                return Err(corrupt("there is data after the end of the archive"));
            }
            if self.state.stream_bytes - start > MAX_PADDING {
                return Err(Error::new(ErrorKind::TooLarge, "the padding after the archive does not end"));
            }
        }
        self.report()
    }

    fn count_entry(&mut self) -> Result<()> {
        self.state.entries += 1;
        if self.state.entries > self.limits.entries {
            let limit = self.limits.entries;
            return Err(Error::new(ErrorKind::TooLarge, format!("the layer has more than {limit} entries")));
        }
        Ok(())
    }

    fn check_size(&mut self, entry: &Entry) -> Result<()> {
        let total = self.state.bytes.checked_add(entry.size);
        if entry.size > self.limits.entry_bytes || total.is_none_or(|t| t > self.limits.total_bytes) {
            let size = entry.size;
            return Err(Error::new(ErrorKind::TooLarge, format!("its {size} bytes are beyond the limit")));
        }
        Ok(())
    }

    fn check_sum(&self, header: &Header) -> Result<()> {
        if !fields::has_checksum(header.as_bytes()) {
            let at = self.state.stream_bytes - BLOCK;
            return Err(corrupt(&format!("the tar header at byte {at} has a wrong checksum")));
        }
        Ok(())
    }

    fn extended_header(&mut self, size: u64, limit: u64) -> Result<Vec<u8>> {
        if size > limit {
            return Err(Error::new(ErrorKind::TooLarge, format!("an extended header of {size} bytes")));
        }
        let size = usize::try_from(size).expect("the limit on extended headers fits memory");
        let mut bytes = vec![0; size.next_multiple_of(BLOCK as usize)];
        self.exact(&mut bytes)?;
        bytes.truncate(size);
        Ok(bytes)
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut name = self.extended_header(size, MAX_LONG_NAME)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn block(&mut self, block: &mut [u8]) -> Result<()> {
        self.exact(block)
    }

    fn exact(&mut self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            let read = self.read_some(buffer)?;
            if read == 0 {
                let at = self.state.stream_bytes;
                return Err(Error::new(
                    ErrorKind::Truncated,
                    format!("the layer's stream ends at byte {at}, before the end of its archive"),
                ));
            }
            buffer = &mut buffer[read..];
        }
        Ok(())
    }

    /// One read of the stream; 0 is its end.
    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = loop {
            match self.reader.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let at = self.state.stream_bytes;
                    let context = format!("reading the layer's stream at byte {at}");
                    return Err(Error::with_source(ErrorKind::Source, context, e));
                }
                Ok(read) => break read.min(buffer.len()),
            }
        };
        self.state.stream_bytes += read as u64;
        if self.state.stream_bytes - self.reported >= REPORT_EVERY {
            self.report()?;
        }
        Ok(read)
    }

    fn report(&mut self) -> Result<()> {
        self.reported = self.state.stream_bytes;
        match (self.progress)(&self.state) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                Err(Error::new(ErrorKind::Cancelled, "unpacking the layer was cancelled"))
            }
        }
    }
}

/// A file's data without its holes. Keeps the reason why it failed, for a tree only sees an I/O error.
pub(super) struct Contents<'b, 'a> {
    archive: &'b mut Archive<'a>,
    entry: &'b Entry,
    stored: u64,
    left: u64,
    failure: Option<Error>,
}

impl Contents<'_, '_> {
    /// To be called after the tree took the contents: everything was read, and the stream is at the next header.
    pub(super) fn finish(mut self, written: Result<()>) -> Result<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        written?;
        if self.left != 0 {
            let (read, stored) = (self.stored - self.left, self.stored);
            return Err(Error::new(ErrorKind::Io, format!("the tree took {read} of {stored} bytes")));
        }
        self.archive.state.bytes += self.entry.size - self.stored;
        let padding = usize::try_from(self.entry.padding).expect("padding is less than a block");
        self.archive.exact(&mut [0; BLOCK as usize][..padding])
    }

    fn read_part(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..wanted];
        let read = self.archive.read_some(buffer)?;
        if read == 0 && wanted > 0 {
            // Says what is missing, and where.
            self.archive.exact(buffer)?;
        }
        self.left -= read as u64;
        self.archive.state.bytes += read as u64;
        Ok(read)
    }
}

impl Read for Contents<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(failure) = &self.failure {
            return Err(io::Error::other(failure.to_string()));
        }
        self.read_part(buffer).map_err(|e| {
            let told = io::Error::other(e.to_string());
            self.failure = Some(e);
            told
        })
    }
}

fn item(header: &Header, path: &[u8]) -> Result<Item> {
    let device = || fields::device(header)?.ok_or_else(|| corrupt("a device node without numbers"));
    Ok(match header.entry_type() {
        // Before ustar, a directory was a file whose name ends in a slash.
        EntryType::Regular if path.ends_with(b"/") => Item::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Item::File,
        EntryType::Directory => Item::Directory,
        EntryType::Symlink => Item::Symlink,
        EntryType::Link => Item::HardLink,
        EntryType::Fifo => Item::Special(Kind::Fifo),
        EntryType::Char => {
            let (major, minor) = device()?;
            Item::Special(Kind::CharDevice { major, minor })
        }
        EntryType::Block => {
            let (major, minor) = device()?;
            Item::Special(Kind::BlockDevice { major, minor })
        }
        other => return Err(unsupported(format!("the entry type {}", printable(&[other.as_byte()])))),
    })
}

fn attributes(header: &Header, extended: &Extended) -> Result<Attributes> {
    let old = header.as_old();
    let id = |name: &str, pax: Option<u64>, header: &[u8]| {
        let id = pax.map_or_else(|| fields::number(name, header), Ok)?;
        u32::try_from(id).map_err(|_| corrupt(&format!("the {name} {id} does not exist")))
    };
    let mtime = match extended.mtime {
        Some(mtime) => mtime,
        // A negative base-256 number comes as its two's complement.
        None => Timestamp { seconds: fields::number("mtime", &old.mtime)?.cast_signed(), nanoseconds: 0 },
    };
    Ok(Attributes {
        mode: (fields::number("mode", &old.mode)? & 0o7777) as u32,
        uid: id("uid", extended.uid, &old.uid)?,
        gid: id("gid", extended.gid, &old.gid)?,
        mtime,
    })
}

fn gnu_extents_into(sparse: &[GnuSparseHeader], extents: &mut Vec<(u64, u64)>) -> Result<()> {
    for part in sparse.iter().filter(|part| !part.is_empty()) {
        let offset = fields::number("sparse offset", &part.offset)?;
        extents.push((offset, fields::number("sparse length", &part.numbytes)?));
    }
    Ok(())
}

/// The map as ranges: ascending, inside the file, and together exactly the stored bytes.
fn check_extents(extents: &[(u64, u64)], size: u64, stored: u64) -> Result<Vec<Range<u64>>> {
    if extents.len() > MAX_EXTENTS {
        return Err(Error::new(ErrorKind::TooLarge, "a sparse file has too many extents"));
    }
    let (mut previous, mut sum) = (0, 0u64);
    let mut data = Vec::with_capacity(extents.len());
    for (offset, length) in extents {
        if *offset < previous {
            return Err(corrupt("the extents of a sparse file overlap"));
        }
        let end = offset.checked_add(*length).filter(|end| *end <= size);
        previous = end.ok_or_else(|| corrupt("an extent of a sparse file lies beyond its size"))?;
        // Cannot overflow: the extents are disjoint and lie below `size`.
        sum += length;
        data.push(*offset..previous);
    }
    if sum != stored {
        return Err(corrupt("the map of a sparse file and its stored bytes disagree"));
    }
    Ok(data)
}

pub(super) fn corrupt(context: &str) -> Error {
    Error::new(ErrorKind::Corrupt, context)
}

pub(super) fn unsupported(what: String) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what} is not supported"))
}
