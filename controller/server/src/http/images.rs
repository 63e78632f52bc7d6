//! `/v1/images`: what instances are made of. An image without a project is everybody's to use and the operators' to
//! change.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;

use super::Api;
use super::access::{Session, Thing};
use super::answer::{Answer, Done, Refusal, accepted, tagged};
use super::page::{Part, met, page};
use super::request::{IdPath, Mutation, Nothing, Parameters};

use crate::core::Command;
use crate::model::{Accepted, Id, Image, NewImage, Page};

/// Which images.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Filter {
    /// Most records of the page, 1 to 1000; 100 where it is missing.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Those of this name.
    name: Option<String>,
    /// Those of this project.
    project: Option<String>,
    /// Those whose contents are in place, or are not.
    ready: Option<bool>,
}

fn usable(session: &Session, image: &Image) -> bool {
    image.project.is_none() || session.sees(image.project.as_deref())
}

/// The images the caller may use, oldest first.
#[utoipa::path(get, path = "/v1/images", params(Filter), responses((status = 200, body = Page<Image>)))]
pub(crate) async fn list(
    State(api): State<Api>,
    session: Session,
    Parameters(filter): Parameters<Filter>,
) -> Answer<Json<Page<Image>>> {
    let part = Part::new(filter.limit, filter.cursor.as_deref())?;
    Ok(Json(api.grid().read(|state| {
        page(&state.images, part, |image| {
            usable(&session, image)
                && met(filter.name.as_ref(), &image.name)
                && filter.project.as_ref().is_none_or(|project| image.project.as_ref() == Some(project))
                && met(filter.ready.as_ref(), &image.ready)
        })
    })))
}

/// An image as it stands.
#[utoipa::path(get, path = "/v1/images/{id}", params(("id" = Id, Path)),
    responses((status = 200, body = Image, headers(("ETag" = String, description = "The generation")))))]
pub(crate) async fn one(State(api): State<Api>, session: Session, IdPath(id): IdPath) -> Answer<Response> {
    let found = api.grid().read(|state| state.images.get(&id).cloned());
    let found = found.filter(|image| usable(&session, image));
    let found = found.ok_or_else(|| Refusal::not_found("images", id))?;
    Ok(tagged(found.generation, &found))
}

/// Registers an OCI image.
#[utoipa::path(post, path = "/v1/images", request_body = NewImage, responses((status = 201, body = Accepted)))]
pub(crate) async fn create(State(api): State<Api>, mut sent: Mutation<NewImage>) -> Answer<Response> {
    sent.session.adopt(&mut sent.body.project)?;
    let done = api.submit(sent, Command::CreateImage).await?;
    Ok(accepted(Done::Made, &done))
}

/// Forgets an image. Instances made of it stay.
#[utoipa::path(delete, path = "/v1/images/{id}", params(("id" = Id, Path)),
    responses((status = 200, body = Accepted)))]
pub(crate) async fn delete(
    State(api): State<Api>,
    IdPath(id): IdPath,
    sent: Mutation<Nothing>,
) -> Answer<Response> {
    api.touch(&sent.session, Thing::Image, id)?;
    let done = api.submit(sent, |_| Command::DeleteImage(id)).await?;
    Ok(accepted(Done::Changed, &done))
}
