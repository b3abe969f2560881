//! What people look at: Swagger UI, the specification, the status page.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use poem::{Endpoint, Response, endpoint::make_sync, http::header};
use poem_openapi::{OpenApi, OpenApiService, Webhook, payload::Html};
use serde_json::Value;

use super::{State, document, routes};
use crate::model::time;

/// Nothing may be loaded from elsewhere, and nothing may run.
const STATUS_PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

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
        // The page is large and rarely asked for, so it is made when somebody does.
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

pub(super) struct Api(pub(super) State);

// The root is an operation like the others, but left out of the specification: it is for people.
#[OpenApi]
impl Api {
    #[oai(path = "/", method = "get", hidden = true)]
    async fn status(&self) -> poem_openapi::payload::Response<Html<String>> {
        poem_openapi::payload::Response::new(Html(status_page(&self.0)))
            .header(header::CACHE_CONTROL.as_str(), "no-store")
            .header(header::CONTENT_SECURITY_POLICY.as_str(), STATUS_PAGE_POLICY)
    }
}

/// The health report for people, drawn by the server; it reloads itself.
fn status_page(state: &State) -> String {
    let reports = state.manager.reports();
    let status = state.status(&reports).as_str();
    let rows: Vec<String> = reports
        .iter()
        .map(|report| {
            let probe = report.probe.map_or_else(
                || "not probed yet".to_owned(),
                |probe| {
                    let result = if probe.ok { "good" } else { "failed" };
                    let (age, took) = (probe.age.as_secs_f64(), probe.latency.as_secs_f64() * 1e3);
                    format!("{result} {age:.0} s ago, took {took:.1} ms")
                },
            );
            format!(
                "<tr><th scope=row>{}</th><td>{}</td><td>{}</td><td>{probe}</td></tr>",
                report.name,
                report.backend,
                report.service.as_str(),
            )
        })
        .collect();
    let links: Vec<String> = [("/docs", "API"), ("/health", "Health"), ("/metrics", "Metrics")]
        .into_iter()
        .filter(|(path, _)| {
            routes::find(path).is_some_and(|route| (route.enabled)(&state.config.features))
        })
        .map(|(path, name)| format!("<a href=\"{path}\">{name}</a> "))
        .collect();
    include_str!("status.html")
        .replace("{status}", status)
        .replace("{rows}", &rows.concat())
        .replace("{links}", &links.concat())
        .replace("{environment}", &escape(&state.config.environment))
        .replace("{instance}", &state.instance)
        .replace("{version}", env!("CARGO_PKG_VERSION"))
        .replace("{now}", &time::now().to_string())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
