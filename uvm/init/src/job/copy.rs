//! `clone`, `capture` and `restore`: a whole device onto another, to a server, and back.

use std::io::{Cursor, Read};

use sha2::{Digest as _, Sha256};
use uvm_api::JobResult;
use uvm_disk::copy::{Contents, Copied};
use uvm_disk::{Device, gpt};

use super::JobError;
use super::context::Context;
use super::plan::{STREAM, hex};
use super::progress::{CLEAR, COMMIT};
use super::request::{CaptureRequest, RestoreRequest};
use crate::image::{Client, ImageError, ImageErrorKind, LayerReader, SendError};

/// Zstandard level: one core keeps up with most disks and networks, and the window is half a MiB.
const LEVEL: i32 = 1;
/// What is read of a stream before the target is touched.
const FIRST_BYTES: u64 = 1 << 20;

/// Carries out a `clone`.
pub(super) fn clone(context: &Context<'_>) -> Result<JobResult, JobError> {
    let target = context.open_target()?;
    let source = context.open_source()?;
    let device_bytes = source.geometry().size;
    clear(context, &target, device_bytes)?;
    let mut hash = Sha256::new();
    let copied = context.step("copy", || {
        Ok(Copied::write(&*target, device_bytes, &mut |offset, buffer| {
            let read = source.read_at(offset, buffer);
            read.map_err(|error| uvm_disk::Error::io("copying the source", offset, error))?;
            hash.update(buffer);
            Ok(())
        })?)
    })?;
    let verified_bytes = prove(context, &target, &copied)?;
    Ok(JobResult::Clone {
        device_bytes,
        copied_bytes: copied.copied_bytes(),
        zero_bytes: copied.zero_bytes(),
        verified_bytes,
        digest: format!("sha256:{}", hex(&hash.finalize())),
    })
}

/// Carries out a `capture`. The device is read once and not written.
pub(super) fn capture(context: &Context<'_>, work: &CaptureRequest) -> Result<JobResult, JobError> {
    let source = context.open_source()?;
    let device_bytes = source.geometry().size;
    let client = client(context)?;
    let mut contents = Contents::new(source);
    let sent = context.step("capture", || {
        let mut stream = zstd::stream::read::Encoder::with_buffer(&mut contents, LEVEL)
            .and_then(|mut encoder| {
                encoder.include_checksum(true)?;
                encoder.set_pledged_src_size(Some(device_bytes))?;
                Ok(encoder)
            })
            .map_err(|error| JobError::from_source(&error))?;
        client.send_stream(&work.destination, &mut stream).map_err(|error| match error {
            SendError::Stream(error) => JobError::from_source(&error),
            SendError::Server(error) => error.into(),
        })
    })?;
    Ok(JobResult::Capture {
        digest: sent.digest.to_string(),
        size_bytes: sent.size,
        device_bytes,
        zero_bytes: contents.zero_bytes(),
    })
}

/// Carries out a `restore`. The stream is opened before the target is touched, and its digest is compared before the
/// target is read back, long before the first MiB goes in.
pub(super) fn restore(context: &Context<'_>, work: &RestoreRequest) -> Result<JobResult, JobError> {
    let (first, mut stream) = context.step(STREAM, || open_stream(context, work))?;
    let target = context.open_target()?;
    clear(context, &target, work.device_bytes)?;
    let copied = context.step("copy", || {
        let mut bytes = Cursor::new(first).chain(&mut stream);
        let copied = Copied::write(&*target, work.device_bytes, &mut |offset, buffer| {
            fill(&mut bytes, buffer, offset, work)?;
            context.progress.add_read(buffer.len() as u64);
            Ok(())
        })?;
        stream.finish()?;
        Ok(copied)
    })?;
    let verified_bytes = prove(context, &target, &copied)?;
    Ok(JobResult::Restore {
        digest: work.digest.to_string(),
        device_bytes: work.device_bytes,
        zero_bytes: copied.zero_bytes(),
        verified_bytes,
    })
}

fn client(context: &Context<'_>) -> Result<Client, JobError> {
    let mut options = context.options.image.clone();
    options.cancel = context.progress.cancel_flag();
    Ok(Client::new(options)?)
}

/// The stream and its first bytes: a server that does not answer costs no disk its contents.
fn open_stream(context: &Context<'_>, work: &RestoreRequest) -> Result<(Vec<u8>, LayerReader), JobError> {
    let client = client(context)?;
    let mut stream = client.open_stream(&work.source, work.digest, work.size, work.device_bytes)?;
    let mut first = Vec::new();
    let read = stream.by_ref().take(FIRST_BYTES).read_to_end(&mut first);
    read.map_err(|error| JobError::from_source(&error))?;
    Ok((first, stream))
}

/// Fills the buffer from the stream; a stream that is at its end holds too little.
fn fill(
    stream: &mut dyn Read,
    buffer: &mut [u8],
    offset: u64,
    work: &RestoreRequest,
) -> uvm_disk::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let at = offset + filled as u64;
        let read = match stream.read(&mut buffer[filled..]) {
            Ok(0) => {
                let (place, wanted) = (&work.source, work.device_bytes);
                let context = format!("{place}: it unpacks to {at} bytes, the device had {wanted}");
                Err(ImageError::new(ImageErrorKind::Malformed, context).into())
            }
            read => read,
        };
        filled += read.map_err(|error| {
            uvm_disk::Error::source_stream(format!("reading the stream for byte {at}"), error)
        })?;
    }
    Ok(())
}

fn clear(context: &Context<'_>, target: &Device, device_bytes: u64) -> Result<(), JobError> {
    context.step(CLEAR, || Ok(gpt::wipe_tables(&**target)?))?;
    let more = target.geometry().size.saturating_sub(device_bytes);
    if more > 0 {
        context.progress.note(format!(
            "the target has {more} bytes more: they become zero, and the backup of a GPT stays where its disk ended"
        ));
    }
    Ok(())
}

/// Reads back what was copied, then writes the edges that make the target a disk again.
fn prove(context: &Context<'_>, target: &Device, copied: &Copied) -> Result<u64, JobError> {
    let verified = context.step("verify", || Ok(copied.verify(&**target)?))?;
    let edges = context.step(COMMIT, || {
        copied.commit(&**target).map_err(|error| {
            let mut error = JobError::from_source(&error);
            // Half a table may be enough for a firmware: take it away again, with its backup where that is.
            if let Err(also) = copied.revoke(&**target) {
                error.causes.push(format!("and the tables could not be removed again: {also}"));
            }
            error
        })
    })?;
    context.progress.set_complete();
    Ok(verified + edges)
}
