//! The OpenAPI document, generated from the routes and the types. `docs/controller-openapi.json` is its copy.

use utoipa::openapi::path::{HttpMethod, Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, ObjectBuilder, Ref, Required, ResponseBuilder, Type};
use utoipa::{Modify, OpenApi};

use super::{blobs, disks, events, grid, images, instances, jobs, nodes, service, tokens};
use crate::model::Problem;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Utility VM controller",
        description = "One API for a grid of nodes: machines made, changed and deleted without a hand."
    ),
    modifiers(&Conventions),
    components(schemas(Problem)),
    paths(
        instances::list,
        instances::create,
        instances::one,
        instances::change,
        instances::delete,
        instances::power,
        instances::snapshot,
        instances::restore,
        instances::save_image,
        instances::copy,
        instances::statistics,
        instances::config,
        disks::list,
        disks::create,
        disks::one,
        disks::delete,
        disks::sanitize,
        disks::snapshots,
        disks::snapshot,
        disks::delete_snapshot,
        images::list,
        images::create,
        images::one,
        images::delete,
        nodes::list,
        nodes::create,
        nodes::one,
        nodes::change,
        nodes::delete,
        nodes::cordon,
        nodes::uncordon,
        nodes::statistics,
        jobs::list,
        jobs::one,
        jobs::cancel,
        jobs::stream,
        events::list,
        events::stream,
        grid::capacity,
        grid::plan,
        grid::sanitizations,
        grid::public_key,
        grid::sanitization,
        tokens::list,
        tokens::create,
        tokens::one,
        tokens::delete,
        blobs::get,
        blobs::put,
        service::healthz,
        service::readyz,
        service::metrics_text,
        service::openapi_document,
    )
)]
struct Document;

/// Paths that need no token.
const OPEN: [&str; 4] = ["/healthz", "/readyz", "/openapi.json", "/v1/blobs/{image}"];
/// Paths by which nothing is changed, whatever the method.
const ASKING: [&str; 1] = ["/v1/plans"];
const BEARER: &str = "token";

/// What holds for every route: problems, the token, the headers of changes.
struct Conventions;

impl Modify for Conventions {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme(BEARER, scheme);
        for (path, item) in &mut document.paths.paths {
            let methods = [
                (HttpMethod::Get, &mut item.get),
                (HttpMethod::Put, &mut item.put),
                (HttpMethod::Post, &mut item.post),
                (HttpMethod::Patch, &mut item.patch),
                (HttpMethod::Delete, &mut item.delete),
            ];
            for (method, operation) in methods {
                if let Some(operation) = operation {
                    describe(path, &method, operation);
                }
            }
        }
    }
}

fn describe(path: &str, method: &HttpMethod, operation: &mut Operation) {
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let refused = ResponseBuilder::new()
        .description("Why not, by RFC 9457")
        .content("application/problem+json", problem)
        .build();
    operation.responses.responses.insert("default".to_owned(), refused.into());
    if OPEN.contains(&path) {
        return;
    }
    operation.security = Some(vec![SecurityRequirement::new(BEARER, Vec::<String>::new())]);
    let changes = matches!(method, HttpMethod::Post | HttpMethod::Patch | HttpMethod::Delete);
    if !changes || ASKING.contains(&path) {
        return;
    }
    let parameters = operation.parameters.get_or_insert_default();
    let key =
        "1 to 128 characters, new for each change; the same request sent again with it has the same answer";
    parameters.push(header("Idempotency-Key", key, Required::True).into());
    // What is made new has no generation yet.
    if path.contains("{id}") {
        let required = if *method == HttpMethod::Patch { Required::True } else { Required::False };
        parameters.push(header("If-Match", "The `ETag` of what was read, or `*`", required).into());
    }
}

fn header(name: &str, description: &str, required: Required) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .description(Some(description))
        .required(required)
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build()
}

/// The document as JSON.
pub fn document() -> String {
    Document::openapi().to_pretty_json().expect("a document of strings and numbers is always JSON")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checked_in_document_is_the_generated_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/controller-openapi.json");
        let checked_in = std::fs::read_to_string(path).expect("docs/controller-openapi.json is checked in");
        assert!(
            checked_in.trim_end() == super::document().trim_end(),
            "the API changed: write docs/controller-openapi.json anew with `uvm-controller openapi`"
        );
    }
}
