//! Whole devices, byte for byte: from another device, or from a stream of what once was one.
//!
//! ```text
//! tables wiped ─▶ Copied::write: all but the edges ─▶ verify: read back, zero what is not ─▶ commit: last MiB, first MiB
//! ```
//!
//! The edges, where partition tables and their backups are, stay in memory until everything else was read back. The
//! first MiB goes in last: until then there is neither a table nor a protective MBR that leads to one.

use std::io::{self, BufRead, Read};
use std::ops::Range;

use crate::field::{expect, flush, read, write};
use crate::{BlockDevice, Device, Error, ErrorKind, Result, gpt};

/// What is read, written and compared at once; also the grain in which zeroes are found.
const PIECE: u64 = 1 << 20;
/// What is held back at either end of the source.
const EDGE: u64 = gpt::ALIGNMENT;
/// The most checksums kept: 1 MiB of them. Beyond 256 GiB each covers more than one piece.
const MAX_SPANS: u64 = 1 << 18;
/// The largest device: one bit a piece says where zeroes are, 8 MiB of them.
const MAX_DEVICE: u64 = 64 << 40;

/// Fills the buffer with what the source has at that offset. It is asked for every byte once, in order.
pub type Feed<'f> = dyn FnMut(u64, &mut [u8]) -> Result<()> + 'f;

/// A source whose bytes are on the target, but for the edges.
pub struct Copied {
    source_bytes: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Pieces between the edges that are zero, and were not written.
    zero: Bits,
    /// CRCs of the pieces written, `pieces_per_span` of them in each.
    spans: Vec<u32>,
    pieces_per_span: u64,
    zero_bytes: u64,
}

impl Copied {
    /// Writes the `source_bytes` that `feed` yields, and flushes. Pieces of zeroes are not written: what a new device
    /// reads there is zero already, and [`Copied::verify`] has to read it anyway. So a copy costs one read of either
    /// side and one write of what is there, and thin storage stays thin.
    ///
    /// The first and the last MiB of the target must be zero already ([`gpt::wipe_tables`]).
    pub fn write(target: &dyn BlockDevice, source_bytes: u64, feed: &mut Feed<'_>) -> Result<Self> {
        check_sizes(target, source_bytes)?;
        let body = body(source_bytes);
        let count = (body.end - body.start).div_ceil(PIECE);
        let pieces_per_span = count.div_ceil(MAX_SPANS).max(1);
        let mut copied = Self {
            source_bytes,
            head: vec![0; body.start as usize],
            tail: vec![0; (source_bytes - body.end) as usize],
            zero: Bits::new(count),
            spans: vec![0; count.div_ceil(pieces_per_span) as usize],
            pieces_per_span,
            zero_bytes: 0,
        };
        feed(0, &mut copied.head)?;
        let mut buffer = vec![0; PIECE as usize];
        for (index, offset, len) in pieces(body.clone()) {
            let piece = &mut buffer[..len];
            feed(offset, piece)?;
            if is_zero(piece) {
                copied.zero.set(index);
                copied.zero_bytes += len as u64;
                continue;
            }
            copied.extend_span(index, piece);
            write(target, offset, piece, "writing the copy")?;
        }
        if !copied.tail.is_empty() {
            feed(body.end, &mut copied.tail)?;
        }
        for edge in [&copied.head, &copied.tail] {
            copied.zero_bytes += if is_zero(edge) { edge.len() as u64 } else { 0 };
        }
        flush(target, "flushing the copy")?;
        Ok(copied)
    }

    fn span(&self, index: u64) -> usize {
        (index / self.pieces_per_span) as usize
    }

    fn extend_span(&mut self, index: u64, piece: &[u8]) {
        let span = self.span(index);
        self.spans[span] = extend(self.spans[span], piece);
    }

    /// Bytes of the source in pieces of zeroes.
    pub fn zero_bytes(&self) -> u64 {
        self.zero_bytes
    }

    /// Bytes of the source in other pieces.
    pub fn copied_bytes(&self) -> u64 {
        self.source_bytes - self.zero_bytes
    }

    /// Drops caches, reads back everything but the edges and compares. What must be zero, also behind the end of the
    /// source, and is not, is made zero and read again. Returns the bytes compared.
    pub fn verify(&self, target: &dyn BlockDevice) -> Result<u64> {
        flush(target, "dropping caches before verification")?;
        let body = body(self.source_bytes);
        let rest = self.source_bytes..target.geometry().size;
        let mut made_zero = Bits::new(rest.end.div_ceil(PIECE));
        let mut crc = 0;
        let mut verified = 0;
        for (index, offset, len) in pieces(body.clone()) {
            let piece = read(target, offset, len, "reading back the copy")?;
            verified += len as u64;
            if self.zero.get(index) {
                make_zero(target, offset, &piece, &mut made_zero)?;
            } else {
                crc = extend(crc, &piece);
            }
            let span = self.span(index);
            if offset + len as u64 == body.end || self.span(index + 1) != span {
                let begin = body.start + span as u64 * self.pieces_per_span * PIECE;
                check_span(crc, self.spans[span], begin..offset + len as u64)?;
                crc = 0;
            }
        }
        for (_, offset, len) in pieces(rest.clone()) {
            let piece = read(target, offset, len, "reading back what lies behind the copy")?;
            verified += len as u64;
            make_zero(target, offset, &piece, &mut made_zero)?;
        }
        let again = pieces(body).chain(pieces(rest)).filter(|(_, offset, _)| made_zero.get(offset / PIECE));
        expect_zero(target, again)?;
        Ok(verified)
    }

    /// Writes the edges, each flushed and read back: the last MiB, then the first. Returns the bytes compared.
    ///
    /// Call it only after [`Copied::verify`]. Where it fails, [`Copied::revoke`].
    pub fn commit(&self, target: &dyn BlockDevice) -> Result<u64> {
        let tail_at = self.source_bytes - self.tail.len() as u64;
        for (offset, edge) in [(tail_at, &self.tail), (0, &self.head)] {
            if edge.is_empty() {
                continue;
            }
            write(target, offset, edge, "writing an edge of the copy")?;
            flush(target, "flushing an edge of the copy")?;
            expect(target, offset, edge, "reading back an edge of the copy")?;
        }
        Ok((self.head.len() + self.tail.len()) as u64)
    }

    /// Makes the edges zero again. Both are tried whatever the first says: half a table may be enough for a firmware.
    pub fn revoke(&self, target: &dyn BlockDevice) -> Result<()> {
        let tail_at = self.source_bytes - self.tail.len() as u64;
        let revoked = [(0, self.head.len()), (tail_at, self.tail.len())]
            .map(|(offset, len)| write(target, offset, &vec![0; len], "revoking an edge of the copy"));
        flush(target, "flushing a revoked copy")?;
        revoked.into_iter().collect()
    }
}

/// What lies between the edges.
fn body(source_bytes: u64) -> Range<u64> {
    let start = EDGE.min(source_bytes);
    start..source_bytes.saturating_sub(EDGE).max(start)
}

/// Number, offset and length of the pieces of a range.
fn pieces(range: Range<u64>) -> impl Iterator<Item = (u64, u64, usize)> {
    let count = range.end.saturating_sub(range.start).div_ceil(PIECE);
    (0..count).map(move |index| {
        let offset = range.start + index * PIECE;
        (index, offset, PIECE.min(range.end - offset) as usize)
    })
}

fn check_sizes(target: &dyn BlockDevice, source_bytes: u64) -> Result<()> {
    let size = target.geometry().size;
    if source_bytes > size {
        let context = format!("copying {source_bytes} bytes to a device of {size}");
        return Err(Error::new(ErrorKind::NoSpace, context));
    }
    if source_bytes == 0 || size > MAX_DEVICE {
        let context = format!("copying {source_bytes} bytes to {size}: 1 to {MAX_DEVICE} can be copied");
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

fn extend(crc: u32, piece: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(crc);
    hasher.update(piece);
    hasher.finalize()
}

fn check_span(found: u32, written: u32, range: Range<u64>) -> Result<()> {
    if found == written {
        return Ok(());
    }
    let context = format!("bytes {} to {} do not read back as written", range.start, range.end - 1);
    Err(Error::new(ErrorKind::VerificationFailed, context).at(range.start))
}

/// Makes a piece zero where it is not, and takes note of it: no two pieces begin in the same MiB.
fn make_zero(target: &dyn BlockDevice, offset: u64, piece: &[u8], made_zero: &mut Bits) -> Result<()> {
    if is_zero(piece) {
        return Ok(());
    }
    let zeroed = target.write_zeroes(offset, piece.len() as u64);
    zeroed.map_err(|e| Error::io("making the target zero", offset, e))?;
    made_zero.set(offset / PIECE);
    Ok(())
}

fn expect_zero(target: &dyn BlockDevice, pieces: impl Iterator<Item = (u64, u64, usize)>) -> Result<()> {
    let mut pieces = pieces.peekable();
    if pieces.peek().is_some() {
        flush(target, "flushing what was made zero")?;
    }
    for (_, offset, len) in pieces {
        if !is_zero(&read(target, offset, len, "reading back what was made zero")?) {
            let context = format!("{len} bytes at {offset} are not zero after they were made so");
            return Err(Error::new(ErrorKind::VerificationFailed, context).at(offset));
        }
    }
    Ok(())
}

/// One bit for each piece.
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: u64) -> Self {
        Self(vec![0; count.div_ceil(64) as usize])
    }
    fn set(&mut self, index: u64) {
        self.0[(index / 64) as usize] |= 1 << (index % 64);
    }
    fn get(&self, index: u64) -> bool {
        self.0[(index / 64) as usize] & (1 << (index % 64)) != 0
    }
}

/// A device's contents as a stream, which tells how much of them is zero.
pub struct Contents {
    device: Device,
    /// Where the next piece begins.
    offset: u64,
    piece: Vec<u8>,
    /// How much of the piece was taken.
    taken: usize,
    zero_bytes: u64,
}

impl Contents {
    /// From the first byte to the last.
    pub fn new(device: Device) -> Self {
        Self { device, offset: 0, piece: Vec::new(), taken: 0, zero_bytes: 0 }
    }

    /// Bytes so far in pieces of zeroes.
    pub fn zero_bytes(&self) -> u64 {
        self.zero_bytes
    }

    fn next_piece(&mut self) -> io::Result<()> {
        let len = PIECE.min(self.device.geometry().size - self.offset) as usize;
        self.piece.resize(len, 0);
        self.taken = len;
        self.device.read_at(self.offset, &mut self.piece).map_err(|error| {
            io::Error::new(error.kind(), Error::io("reading the device", self.offset, error))
        })?;
        self.taken = 0;
        self.offset += len as u64;
        self.zero_bytes += if is_zero(&self.piece) { len as u64 } else { 0 };
        Ok(())
    }
}

impl BufRead for Contents {
    /// An error is an [`Error`] inside, with its offset.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.piece.len() {
            self.next_piece()?;
        }
        Ok(&self.piece[self.taken..])
    }

    fn consume(&mut self, count: usize) {
        self.taken = (self.taken + count).min(self.piece.len());
    }
}

impl Read for Contents {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}
