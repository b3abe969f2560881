//! The status page: the health report for people. The server renders it, so that it works without
//! scripts; its script fetches it again and plots the changes.

use base64::prelude::{BASE64_STANDARD, Engine};
use poem::{Endpoint, Request, Response, http::header};
use sha2::{Digest, Sha256};

use super::{ROUTES, State, operation::Page, pages};
use crate::{
    config::Details,
    connection::{ConnectionReport, Transition},
    model::{
        backlog::{Backlog, Waiting},
        time::{self, Timestamp},
    },
};

const STYLE: &str = include_str!("status_page/style.css");
const SCRIPT: &str = include_str!("status_page/script.js");
/// The number of state changes shown.
const CHANGES: usize = 20;

/// A page for people, so it is not part of the specification.
pub(super) const ROOT: Page = Page { path: "/", is_enabled: |features| features.status_page };

pub(super) struct StatusPage {
    state: State,
    policy: String,
}

impl StatusPage {
    pub(super) fn new(state: State) -> Self {
        let (style, script) = (hash(STYLE), hash(SCRIPT));
        // Only the script and style of this program are allowed; nothing may be loaded from
        // elsewhere.
        let policy = format!(
            "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        Self { state, policy }
    }
}

/// A hash in the form that a content security policy uses.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}

impl Endpoint for StatusPage {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let details = request.data().is_some_and(|caller| self.state.shows_details(caller));
        Ok(Response::builder()
            .header(header::CACHE_CONTROL, "no-store")
            .header(header::CONTENT_SECURITY_POLICY, &self.policy)
            .content_type("text/html; charset=utf-8")
            .body(page(&self.state, details)))
    }
}

fn page(state: &State, details: bool) -> String {
    let reports = state.manager.reports();
    let report = if details { detailed(state, &reports) } else { brief(&reports) };
    // The page asks for the key that the browser did not send; its script sends it.
    let asks = state.config.health.details == Details::WhenAuthorized && !details;
    let key_form = if asks { include_str!("status_page/key_form.html") } else { "" };
    include_str!("status_page/page.html")
        .replace("{status}", state.status(&reports).as_str())
        .replace("{report}", &report)
        .replace("{key_form}", key_form)
        .replace("{links}", &links(state))
        .replace("{environment}", &escape(&state.config.environment))
        .replace("{version}", env!("CARGO_PKG_VERSION"))
        .replace("{commit}", env!("BUILD_COMMIT"))
        .replace("{instance}", &state.instance)
        .replace("{now}", &moment(time::now()))
        // Last, because they are code with braces of their own.
        .replace("{style}", STYLE)
        .replace("{script}", SCRIPT)
}

fn links(state: &State) -> String {
    [(pages::DOCS.path, "API in Swagger UI"), ("/health", "Health"), ("/metrics", "Metrics")]
        .into_iter()
        .filter(|(path, _)| {
            ROUTES.named(path).is_some_and(|route| route.is_enabled(&state.config.features))
        })
        .map(|(path, name)| format!("<a href=\"{path}\">{name}</a>"))
        .collect::<Vec<_>>()
        .concat()
}

/// The part that everybody may see.
fn brief(reports: &[ConnectionReport]) -> String {
    let card = |report: &ConnectionReport| {
        let service = report.service.as_str();
        format!("<article>{}</article>", heading(report.name, service))
    };
    section("Connections", &cards(reports.iter().map(card)))
}

/// The part for callers who may see details.
fn detailed(state: &State, reports: &[ConnectionReport]) -> String {
    let connections = section("Connections", &cards(reports.iter().map(card)));
    let (events, executions) = (state.relay.waiting(), state.executions.waiting());
    let counted = events
        .counted_ago
        .map_or("not yet".to_owned(), |age| format!("{:.0} s ago", age.as_secs_f64()));
    let waiting = [
        waiting_card("Events, for the event broker", &events),
        waiting_card("Executions, for the execution service", &executions),
    ];
    let outbox = format!(
        "<p class=note>What was accepted and is not handed over yet, counted {counted}. In and out: \
         what this process accepted and handed over, over the last minute.</p>{}",
        cards(waiting.into_iter())
    );
    let timeline = timeline(state);
    connections + &section("Outbox", &outbox) + &section("State changes", &timeline)
}

fn section(title: &str, content: &str) -> String {
    format!("<section><h2>{title}</h2>{content}</section>")
}

fn cards(cards: impl Iterator<Item = String>) -> String {
    format!("<div class=cards>{}</div>", cards.collect::<String>())
}

fn heading(name: &str, state: &str) -> String {
    format!("<h3>{name} <span class=\"badge {state}\">{}</span></h3>", words(state))
}

/// A connection, with the numbers that the script plots.
fn card(report: &ConnectionReport) -> String {
    let circuit = report.circuit.as_str();
    let mut facts = vec![
        ("backend", escape(&report.backend)),
        ("required", if report.required { "yes" } else { "no" }.to_owned()),
        ("circuit breaker", format!("<span class=\"badge {circuit}\">{}</span>", words(circuit))),
    ];
    facts.push((
        "last probe",
        report.probe.map_or("none yet".to_owned(), |probe| {
            let result = if probe.ok { "good" } else { "failed" };
            let (took, age) = (probe.latency.as_secs_f64() * 1e3, probe.age.as_secs_f64());
            format!("{result} in {took:.1} ms, {age:.0} s ago")
        }),
    ));
    if let Some(pool) = report.pool {
        let pool = format!("{} of {} in use, {} wait", pool.in_use, pool.max, pool.waiting);
        facts.push(("pool", pool));
    }
    let mean = report.acquire_mean.as_secs_f64() * 1e3;
    facts.push(("calls", report.uses.to_string()));
    facts.push(("built", format!("{}, recovered {}", report.builds, report.recoveries)));
    facts.push(("retry budget", format!("{:.0} %", report.retry_budget * 100.0)));
    if let Some((kind, at)) = report.last_error {
        facts.push(("last error", format!("{}, {}", kind.as_str(), moment(at))));
    }
    let facts = list(&facts);
    let latency = report.probe.map_or(0.0, |probe| probe.latency.as_secs_f64() * 1e3);
    format!(
        "<article data-connection=\"{}\" data-uses=\"{}\" data-acquire-mean=\"{mean}\" \
         data-latency=\"{latency}\" data-ok=\"{}\">{}{facts}</article>",
        report.name,
        report.uses,
        report.probe.is_none_or(|probe| probe.ok),
        heading(report.name, report.service.as_str()),
    )
}

fn waiting_card(what: &str, waiting: &Waiting) -> String {
    let Backlog { rows, oldest, dead } = waiting.backlog;
    let none = || "–".to_owned();
    let (accepted, delivered) = (waiting.accepted_per_second, waiting.delivered_per_second);
    let facts = list(&[
        ("waiting", rows.to_string()),
        ("oldest", oldest.map_or_else(none, |age| format!("{:.0} s", age.as_secs_f64()))),
        ("in, out", format!("{accepted:.1}/s, {delivered:.1}/s")),
        ("late since", waiting.late_since.map_or_else(none, moment)),
        ("dead letters", dead.to_string()),
    ]);
    format!("<article><h3>{what}</h3>{facts}</article>")
}

fn list(facts: &[(&str, String)]) -> String {
    let facts = facts.iter().map(|(name, value)| format!("<dt>{name}</dt><dd>{value}</dd>"));
    format!("<dl>{}</dl>", facts.collect::<String>())
}

/// The last state changes of all connections, newest first.
fn timeline(state: &State) -> String {
    let mut changes: Vec<(&str, Transition)> = state
        .manager
        .timelines()
        .into_iter()
        .flat_map(|(name, timeline)| timeline.into_iter().map(move |change| (name, change)))
        .collect();
    changes.sort_by_key(|(_, change)| std::cmp::Reverse(change.at));
    let rows: Vec<_> = changes
        .iter()
        .take(CHANGES)
        .map(|(name, change)| {
            let error =
                change.error.map(|kind| format!(" ({})", kind.as_str())).unwrap_or_default();
            format!(
                "<tr><td>{at}</td><th scope=row>{name}</th>\
                 <td>{subject} {to}</td><td>{cause}{error}</td></tr>",
                at = moment(change.at),
                subject = words(change.subject.as_str()),
                to = words(change.to),
                cause = escape(&change.cause),
            )
        })
        .collect();
    format!(
        "<table class=changes><thead><tr><th scope=col>When</th><th scope=col>Connection</th>\
         <th scope=col>What</th><th scope=col>Why</th></tr></thead><tbody>{}</tbody></table>",
        rows.concat()
    )
}

/// Shown to the second; the attribute has the full precision.
fn moment(at: Timestamp) -> String {
    let (fine, seconds) = (at.to_string(), at.strftime("%Y-%m-%d %H:%M:%S"));
    format!("<time datetime=\"{fine}\">{seconds} UTC</time>")
}

fn words(name: &str) -> String {
    name.replace('_', " ")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
