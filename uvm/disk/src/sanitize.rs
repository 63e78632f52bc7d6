//! Overwriting a whole device and proving it (NIST SP 800-88: Clear by Overwrite).

use aes::Aes256;
use aes::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};

use crate::field::{expect, flush, write};
use crate::{BlockDevice, Result};

const BUFFER_LEN: u64 = 1 << 20;

/// What every byte becomes. The caller zeroizes the seed.
#[derive(Clone, Copy)]
pub enum Pattern {
    /// Zero.
    Zero,
    /// AES-256-CTR keystream.
    Random {
        /// The key.
        seed: [u8; 32],
    },
}

impl Pattern {
    /// The bytes that belong at `offset`.
    fn fill(&self, offset: u64, buf: &mut [u8]) {
        buf.fill(0);
        if let Self::Random { seed } = self {
            let mut cipher = ctr::Ctr128BE::<Aes256>::new(seed.into(), &[0; 16].into());
            cipher.seek(offset);
            cipher.apply_keystream(buf);
        }
    }
}

/// Calls `step` with each piece of the device.
fn pieces(device: &dyn BlockDevice, mut step: impl FnMut(u64, usize) -> Result<()>) -> Result<()> {
    let size = device.geometry().size;
    let mut offset = 0;
    while offset < size {
        let len = BUFFER_LEN.min(size - offset);
        step(offset, len as usize)?;
        offset += len;
    }
    Ok(())
}

/// Writes the pattern over every byte, with plain writes: nothing a device could offload or forget.
///
/// The caller zeroes head and tail before ([`crate::gpt::wipe_tables`]), so that an interruption leaves no partition
/// table. `progress` gets the bytes written so far; its error ends the work.
pub fn overwrite(
    device: &dyn BlockDevice,
    pattern: Pattern,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; BUFFER_LEN as usize];
    pieces(device, |offset, len| {
        pattern.fill(offset, &mut buffer[..len]);
        write(device, offset, &buffer[..len], "overwriting the device")?;
        progress(offset + len as u64)
    })?;
    flush(device, "flushing the overwritten device")
}

/// Reads every byte back and compares it with the pattern;
/// [`crate::ErrorKind::VerificationFailed`] names the first that differs.
pub fn verify_overwrite(
    device: &dyn BlockDevice,
    pattern: Pattern,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    flush(device, "dropping caches before verification")?;
    let mut buffer = vec![0; BUFFER_LEN as usize];
    pieces(device, |offset, len| {
        pattern.fill(offset, &mut buffer[..len]);
        expect(device, offset, &buffer[..len], "verifying the overwrite")?;
        progress(offset + len as u64)
    })
}
