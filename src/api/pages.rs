//! The specification, and Swagger UI, which shows it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use poem::{Endpoint, Response, endpoint::make_sync};
use poem_openapi::{OpenApi, OpenApiService, Webhook};
use serde_json::Value;

use super::{document, operation::Page};

/// Swagger UI.
pub(super) const DOCS: Page = Page { path: "/docs", is_enabled: |features| features.docs };
/// The specification as JSON.
pub(super) const JSON: Page = Page { path: "/openapi.json", ..DOCS };
/// The specification as YAML.
pub(super) const YAML: Page = Page { path: "/openapi.yaml", ..DOCS };

/// The pages of one application.
pub(super) struct Pages {
    json: Bytes,
    yaml: Bytes,
    docs: Arc<dyn Fn() -> String + Send + Sync>,
}

impl Pages {
    pub(super) fn new<T: OpenApi + 'static, W: Webhook + 'static>(
        service: &OpenApiService<T, W>,
        document: &Value,
    ) -> Self {
        let json = document.to_string();
        // The page is large and rarely requested, so it is built on the first request.
        let (derived, completed) = (service.spec(), json.clone());
        let page = service.swagger_ui_html();
        let split = page.split_once(&derived).map(|(head, tail)| (head.len(), tail.len()));
        let page: Arc<str> = page.into();
        let docs = move || match split {
            Some((head, tail)) => {
                format!("{}{completed}{}", &page[..head], &page[page.len() - tail..])
            }
            None => page.to_string(),
        };
        Self { yaml: document::yaml(document).into(), json: json.into(), docs: Arc::new(docs) }
    }

    pub(super) fn docs(&self) -> impl Endpoint<Output = Response> + use<> {
        let make = Arc::clone(&self.docs);
        let page = OnceLock::new();
        make_sync(move |_| {
            let page: &Bytes = page.get_or_init(|| make().into());
            text("text/html; charset=utf-8", page.clone())
        })
    }

    pub(super) fn json(&self) -> impl Endpoint<Output = Response> + use<> {
        let json = self.json.clone();
        make_sync(move |_| text("application/json", json.clone()))
    }

    pub(super) fn yaml(&self) -> impl Endpoint<Output = Response> + use<> {
        let yaml = self.yaml.clone();
        make_sync(move |_| text("application/yaml", yaml.clone()))
    }
}

fn text(content_type: &'static str, body: Bytes) -> Response {
    Response::builder().content_type(content_type).body(body)
}
