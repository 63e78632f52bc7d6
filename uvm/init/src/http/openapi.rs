//! The OpenAPI document, generated from the routes and the wire types. `docs/openapi.json` is its copy.

use utoipa::OpenApi;

use super::routes;

#[derive(OpenApi)]
#[openapi(
    info(title = "Utility VM", description = "Jobs on the block devices of one node, over mutual TLS."),
    paths(
        routes::healthz,
        routes::node,
        routes::devices,
        routes::jobs,
        routes::submit,
        routes::job,
        routes::job_events,
        routes::cancel,
        routes::power,
        routes::metrics_text,
        routes::openapi_document,
    )
)]
struct Document;

/// The document as JSON.
pub(crate) fn document() -> String {
    Document::openapi().to_pretty_json().expect("a document of strings and numbers is always JSON")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checked_in_document_is_the_generated_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let checked_in = std::fs::read_to_string(path).expect("docs/openapi.json is checked in");
        assert!(
            checked_in.trim_end() == super::document().trim_end(),
            "the API changed: write docs/openapi.json anew with `uvm openapi`"
        );
    }
}
