//! `/v1/blobs/{image}`: captured disks, sent and fetched by utility VMs. Each has an authorization of its own, good for
//! one verb on one image, that its job carries.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use utoipa::ToSchema;

use super::answer::{Answer, Refusal};
use super::request::{IdPath, STRANGERS, drain};
use super::{Api, blocking};
use crate::blobs::{Error, ErrorKind, Verb};
use crate::model::{ErrorCode, Id, ImageContents};

/// Time a sender has for the next part.
const PATIENCE: Duration = Duration::from_secs(60);
/// Parts received and not yet written.
const MAX_PARTS: usize = 8;
/// Bytes read from a file at once.
const PART: usize = 256 << 10;

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoredBlob {
    /// `sha256:…` of it.
    pub digest: String,
    /// Its size.
    pub size_bytes: u64,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            ErrorKind::NotFound => ErrorCode::NotFound,
            ErrorKind::OutOfSpace => ErrorCode::StoreFailed,
            ErrorKind::Overloaded => ErrorCode::Overloaded,
            ErrorKind::Interrupted => ErrorCode::InvalidRequest,
            ErrorKind::Failed => ErrorCode::Internal,
        };
        let mut refusal = Self::new(code, error.to_string());
        refusal.0.causes.extend(std::error::Error::source(&error).map(ToString::to_string));
        refusal
    }
}

impl Api {
    fn check_blob(&self, headers: &HeaderMap, verb: Verb, image: Id) -> Answer<OwnedSemaphorePermit> {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if !self.services.blobs.check(shown.unwrap_or_default(), verb, image) {
            let detail = "this call needs the authorization that the utility VM's job carries";
            return Err(Refusal::new(ErrorCode::Unauthorized, detail));
        }
        Arc::clone(&self.transfers).try_acquire_owned().map_err(|_| {
            Refusal::new(ErrorCode::Overloaded, "too many images are on their way; try again later")
        })
    }
    /// Whether that image's contents are to come.
    fn awaited(&self, headers: &HeaderMap, image: Id) -> Answer<OwnedSemaphorePermit> {
        let place = self.check_blob(headers, Verb::Put, image)?;
        match self.grid().read(|state| state.images.get(&image).map(|image| image.ready)) {
            None => Err(Refusal::not_found("images", image)),
            // Instances may be made of it already: it never changes again.
            Some(true) => Err(Refusal::new(ErrorCode::WrongState, "the image has its contents")),
            Some(false) => Ok(place),
        }
    }
}

/// Takes the contents of an image that is being captured.
#[utoipa::path(put, path = "/v1/blobs/{image}", params(("image" = Id, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = StoredBlob)))]
pub(crate) async fn put(
    State(api): State<Api>,
    IdPath(image): IdPath,
    request: Request,
) -> Answer<(StatusCode, Json<StoredBlob>)> {
    let (parts, sent) = request.into_parts();
    let _place = match api.awaited(&parts.headers, image) {
        Ok(place) => place,
        Err(refusal) => {
            drain(sent, STRANGERS).await;
            return Err(refusal);
        }
    };
    let (sender, receiver) = mpsc::channel(MAX_PARTS);
    let services = Arc::clone(&api.services);
    let mut reader = Incoming { parts: receiver, part: Bytes::new(), ended: false };
    let kept = tokio::task::spawn_blocking(move || services.blobs.put(image, &mut reader));
    feed(sent.into_data_stream(), sender).await;
    match kept.await {
        Ok(stored) => {
            let stored = stored?;
            let answer = StoredBlob { digest: stored.digest, size_bytes: stored.size_bytes };
            Ok((StatusCode::CREATED, Json(answer)))
        }
        Err(_) => Err(Refusal::new(ErrorCode::Internal, "a fault in the controller; its log says more")),
    }
}

/// `None` is the end. A channel that closes without it is a sender that went away.
type Part = Option<io::Result<Bytes>>;

async fn feed(mut body: BodyDataStream, sender: mpsc::Sender<Part>) {
    loop {
        let part = match tokio::time::timeout(PATIENCE, body.next()).await {
            Ok(None) => None,
            Ok(Some(part)) => Some(part.map_err(io::Error::other)),
            Err(_) => Some(Err(io::Error::from(io::ErrorKind::TimedOut))),
        };
        let last = !matches!(part, Some(Ok(_)));
        // Whoever writes has given up: it says why.
        if sender.send(part).await.is_err() || last {
            return;
        }
    }
}

/// What arrives, for a reader that blocks.
struct Incoming {
    parts: mpsc::Receiver<Part>,
    part: Bytes,
    ended: bool,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() && !self.ended {
            match self.parts.blocking_recv() {
                Some(Some(part)) => self.part = part?,
                Some(None) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = self.part.len().min(buffer.len());
        let (Some(to), from) = (buffer.get_mut(..count), self.part.split_to(count)) else { return Ok(0) };
        to.copy_from_slice(&from);
        Ok(count)
    }
}

/// The contents of an image, or what follows an offset (`Range: bytes=1048576-`).
#[utoipa::path(get, path = "/v1/blobs/{image}",
    params(("image" = Id, Path), ("Range" = Option<String>, Header), ("If-Range" = Option<String>, Header)),
    responses((status = 200, content_type = "application/octet-stream"),
        (status = 206, content_type = "application/octet-stream")))]
pub(crate) async fn get(
    State(api): State<Api>,
    IdPath(image): IdPath,
    headers: HeaderMap,
) -> Answer<Response> {
    let place = api.check_blob(&headers, Verb::Get, image)?;
    let tag = api.grid().read(|state| match state.images.get(&image).map(|image| &image.contents) {
        Some(ImageContents::Disk { digest, .. }) if !digest.is_empty() => Some(format!("\"{digest}\"")),
        _ => None,
    });
    let tag = tag.ok_or_else(|| Refusal::not_found("blobs", image))?;
    let offset = offset(&headers, &tag);
    let services = Arc::clone(&api.services);
    let (file, size) = blocking(move || -> Result<_, Refusal> {
        let failed = |error: io::Error| Refusal::new(ErrorCode::Internal, format!("image {image}: {error}"));
        let mut file = services.blobs.open_image(image)?;
        let size = file.metadata().map_err(failed)?.len();
        file.seek(SeekFrom::Start(offset.unwrap_or(0).min(size))).map_err(failed)?;
        Ok((file, size))
    })
    .await??;
    let from = offset.unwrap_or(0);
    if offset.is_some_and(|from| from >= size) {
        let detail = format!("the image has {size} bytes");
        return Err(Refusal::framework(StatusCode::RANGE_NOT_SATISFIABLE, detail));
    }
    let mut response = Body::from_stream(outgoing(file, place)).into_response();
    let sent = response.headers_mut();
    let number = |value: String| HeaderValue::from_str(&value).expect("digits and letters are a header");
    sent.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    sent.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    sent.insert(header::ETAG, number(tag));
    sent.insert(header::CONTENT_LENGTH, number((size - from).to_string()));
    if offset.is_some() {
        sent.insert(header::CONTENT_RANGE, number(format!("bytes {from}-{}/{size}", size.saturating_sub(1))));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Where to begin; `None` where the whole is to be sent. Other ranges than to the end are not served, which RFC 9110
/// allows.
fn offset(headers: &HeaderMap, tag: &str) -> Option<u64> {
    let range = headers.get(header::RANGE)?.to_str().ok()?;
    let begun_of = headers.get(header::IF_RANGE);
    if begun_of.is_some_and(|begun| begun.as_bytes() != tag.as_bytes()) {
        return None;
    }
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

fn outgoing(
    file: std::fs::File,
    place: OwnedSemaphorePermit,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    unfold(Some((file, place)), |held| async move {
        let (mut file, place) = held?;
        let read = tokio::task::spawn_blocking(move || {
            let mut part = vec![0; PART];
            let count = file.read(&mut part)?;
            part.truncate(count);
            io::Result::Ok((file, part))
        });
        match read.await {
            Ok(Ok((_, part))) if part.is_empty() => None,
            Ok(Ok((file, part))) => Some((Ok(Bytes::from(part)), Some((file, place)))),
            Ok(Err(error)) => Some((Err(error), None)),
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_to_the_end_of_the_same_contents_is_served() {
        let tag = "\"sha256:ab\"";
        let of = |range: &str, begun: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            if let Some(begun) = begun {
                headers.insert(header::IF_RANGE, begun.parse().unwrap());
            }
            offset(&headers, tag)
        };
        assert_eq!(of("bytes=7-", None), Some(7));
        assert_eq!(of("bytes=0-", Some(tag)), Some(0));
        for (range, begun) in
            [("bytes=7-", Some("\"sha256:cd\"")), ("bytes=7-9", None), ("bytes=-7", None), ("lines=7-", None)]
        {
            assert_eq!(of(range, begun), None, "{range}");
        }
        assert_eq!(offset(&HeaderMap::new(), tag), None);
    }

    #[test]
    fn a_sender_that_goes_away_is_no_end() {
        let (sender, parts) = mpsc::channel(MAX_PARTS);
        let mut reader = Incoming { parts, part: Bytes::new(), ended: false };
        sender.try_send(Some(Ok(Bytes::from_static(b"abc")))).unwrap();
        drop(sender);
        let mut read = Vec::new();
        assert_eq!(reader.read_to_end(&mut read).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read, b"abc");
        let (sender, parts) = mpsc::channel(MAX_PARTS);
        let mut reader = Incoming { parts, part: Bytes::new(), ended: false };
        sender.try_send(Some(Ok(Bytes::from_static(b"abc")))).unwrap();
        sender.try_send(None).unwrap();
        drop(sender);
        assert_eq!(reader.read_to_end(&mut read).unwrap(), 3);
    }
}
