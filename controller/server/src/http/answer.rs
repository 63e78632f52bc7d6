//! What is sent: problems, accepted changes, records with their `ETag`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::model::{Accepted, ErrorCode, Problem};
use crate::store::StoreError;

/// Seconds after which a refused request may be sent again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// A [`Problem`] as an answer: `application/problem+json`.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Box<Problem>);

/// What handlers give.
pub(crate) type Answer<T> = Result<T, Refusal>;

impl Refusal {
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(code, detail)))
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, detail)
    }

    /// The same for somebody else's thing and for none, so that nobody learns which ids there are.
    pub(crate) fn not_found(table: &str, id: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no {table}/{id}"))
    }

    /// What the framework refused, under its own status.
    pub(crate) fn framework(status: StatusCode, detail: String) -> Self {
        Self(Box::new(Problem { status: status.as_u16(), ..Problem::new(ErrorCode::InvalidRequest, detail) }))
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        // The store's own words name files of this machine: they are for the log.
        crate::log::warn(&format!("the API reads the store: {error}"));
        Self::new(ErrorCode::Internal, "the store cannot be read; the controller's log says why")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match status {
            StatusCode::SERVICE_UNAVAILABLE => drop(headers.insert(header::RETRY_AFTER, RETRY_AFTER)),
            StatusCode::UNAUTHORIZED => {
                drop(headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
            }
            _ => {}
        }
        response
    }
}

/// What a request brings about where it starts no job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Something new: 201.
    Made,
    /// Something other than before: 200.
    Changed,
}

/// 202 with the job to follow; 201 or 200 where everything is done already.
pub(crate) fn accepted(done: Done, accepted: &Accepted) -> Response {
    accepted_as(done, accepted, accepted)
}

/// The same with another body.
pub(crate) fn accepted_as(done: Done, accepted: &Accepted, body: &impl Serialize) -> Response {
    let (status, location) = match (accepted.job, done) {
        (Some(job), _) => (StatusCode::ACCEPTED, Some(format!("/v1/jobs/{job}"))),
        (None, Done::Made) => (StatusCode::CREATED, Some(format!("/v1/{}", accepted.subject))),
        (None, Done::Changed) => (StatusCode::OK, None),
    };
    let mut response = (status, Json(body)).into_response();
    if let Some(Ok(location)) = location.map(|path| HeaderValue::from_str(&path)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A record, with its generation as `ETag`.
pub(crate) fn tagged(generation: u64, record: &impl Serialize) -> Response {
    let tag = HeaderValue::from_str(&format!("\"{generation}\"")).expect("digits and quotes are a header");
    ([(header::ETAG, tag)], Json(record)).into_response()
}
