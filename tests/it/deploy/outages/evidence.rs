//! The operator's view of an outage, as a section of the page.

use std::{fmt::Write as _, time::Duration};

use agentarea_api::error::ErrorKind;
use serde_json::{Value, json};

use super::scenes::{Scene, Watched};
use crate::support::{Service, eventually, prometheus::target};

/// Replaces values that differ from run to run.
const ANY: &str = "…";
/// Keys whose values differ from run to run.
const VARYING: [&str; 11] = [
    "accepted_at",
    "age_seconds",
    "at",
    "created_at",
    "duration_ms",
    "failures_in_row",
    "id",
    "instance",
    "latency_ms",
    "request_id",
    "timestamp",
];
/// Keys that are irrelevant to an outage.
const ASIDE: [&str; 11] = [
    "accepted_per_second",
    "counted_seconds_ago",
    "delivered_per_second",
    "event",
    "input",
    "late_since",
    "name",
    "pool",
    "recoveries",
    "retry_budget",
    "reuse",
];

pub(super) async fn section(scene: &Scene, alert: &Value) -> String {
    let (service, name) = (&scene.service, scene.alert);
    let summary = alert["annotations"]["summary"].as_str().unwrap();
    let summary = summary.replace(target(service), "api:8000");
    let severity = alert["labels"]["severity"].as_str().unwrap();
    let mut page = format!(
        "## {}\n\n{}\n\n**Alert** [{name}](troubleshooting.md#{}), `{severity}`: {summary}\n\n",
        scene.title,
        scene.done,
        name.to_lowercase(),
    );
    page += &match scene.watched {
        Watched::Connection(connection, class) => of_connection(scene, connection, class).await,
        Watched::Destination(destination) => of_destination(scene, destination).await,
        Watched::Instance => of_instance(scene).await,
    };
    page
}

async fn of_connection(scene: &Scene, connection: &str, class: ErrorKind) -> String {
    let service = &scene.service;
    let (mut report, client) = settled(service, connection, class).await;
    let details = &mut report["connections"]["details"][connection];
    assert_eq!(details["last_error"]["class"], class.as_str(), "{}: {details}", scene.title);
    if class == ErrorKind::ReadOnly {
        // Its value depends on the mix of calls.
        details["circuit"] = json!(ANY);
    }
    let mut page = health(service, &report, Some(connection)).await;
    let path = format!("/v1/connections/{connection}");
    let timeline = service.json(&path).await["timeline"].take();
    let changes = timeline.as_array().unwrap().iter();
    let went_down = changes.rev().find(|change| change["to"] == "unavailable").unwrap();
    assert_eq!(went_down["error_class"], class.as_str(), "{}: {timeline}", scene.title);
    let went_down = masked(went_down.clone());
    write!(page, "`GET {path}`, in its `timeline`:\n\n```json\n{went_down:#}\n```\n\n").unwrap();
    page += &log(scene, &format!("{connection} is unavailable"));
    let up = format!("agentarea_connection_up{{connection=\"{connection}\"}}");
    let failures =
        format!("agentarea_probes_total{{connection=\"{connection}\",outcome=\"failure\"}}");
    page += &metrics(service, &[(&up, true), (&failures, false)]).await;
    page + &client
}

/// The report and a client's request, once the state is stable: without the database, the breaker
/// is open, with occasional trial calls.
async fn settled(service: &Service, connection: &str, class: ErrorKind) -> (Value, String) {
    let (path, body) = match connection {
        "execution_service" => ("/v1/executions", json!({"workflow": "echo"})),
        _ => ("/v1/events", json!({"type": "task.created", "subject": "task-1"})),
    };
    let opens = connection == "database" && class != ErrorKind::ReadOnly;
    eventually("the outage has settled", async || {
        let report = service.json("/health").await;
        let (status, answer) = service.send(path, &body).await;
        let circuit = &report["connections"]["details"][connection]["circuit"];
        let refused = answer["type"] == "urn:agentarea:problem:unavailable";
        let answer = masked(answer);
        let client = format!(
            "A client's `POST {path}` is answered {}:\n\n```json\n{answer:#}\n```\n",
            status.as_u16()
        );
        (!opens || circuit == "open" && refused).then_some((report, client))
    })
    .await
}

async fn of_destination(scene: &Scene, destination: &str) -> String {
    let service = &scene.service;
    let mut page = health(service, &service.json("/health").await, None).await;
    let letters = masked(service.json("/v1/dead-letters").await);
    write!(page, "`GET /v1/dead-letters`:\n\n```json\n{letters:#}\n```\n\n").unwrap();
    page += &log(scene, "it is a dead letter");
    let series = format!("agentarea_dead_letters{{destination=\"{destination}\"}}");
    page += metrics(service, &[(&series, true)]).await.trim_end();
    page + "\n"
}

async fn of_instance(scene: &Scene) -> String {
    let asked = scene.service.get("/health").timeout(Duration::from_secs(2)).send().await;
    let error = asked.expect_err("nobody is there to answer");
    let answer = if error.is_connect() {
        "is refused: nothing listens"
    } else {
        assert!(error.is_timeout(), "{error}");
        "gets no answer"
    };
    assert_eq!(scene.service.log().len(), scene.logged, "it did not know of its end");
    format!(
        "`GET /health` {answer}. The log ends without a word, and there are no metrics: Prometheus has \
         `up == 0`.\n"
    )
}

/// The probes' answers, and the part of the report about this connection.
async fn health(service: &Service, report: &Value, connection: Option<&str>) -> String {
    let mut statuses = Vec::new();
    for path in ["/health", "/livez", "/readyz"] {
        let status = service.get(path).send().await.unwrap().status();
        statuses.push(format!("`GET {path}` answers {}", status.as_u16()));
    }
    let mut shown = json!({
        "status": report["status"],
        "connections": {
            "status": report["connections"]["status"],
            "services": report["connections"]["services"],
        },
        "outbox": report["outbox"],
    });
    if let Some(name) = connection {
        shown["connections"]["details"] = json!({name: report["connections"]["details"][name]});
    }
    format!("{}:\n\n```json\n{:#}\n```\n\n", statuses.join(", "), masked(shown))
}

fn masked(mut value: Value) -> Value {
    mask(&mut value);
    value
}

fn mask(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !ASIDE.contains(&&**key));
            for (key, value) in object {
                if VARYING.contains(&&**key) {
                    *value = json!(ANY);
                } else {
                    mask(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        _ => {}
    }
}

/// The first log line since the fault that contains the text.
fn log(scene: &Scene, what: &str) -> String {
    let log = scene.service.log();
    let line = log[scene.logged..].lines().find(|line| line.contains(what));
    let line = line.unwrap_or_else(|| panic!("{}: no {what:?} in\n{log}", scene.title));
    let (_time, line) = line.split_once(' ').unwrap();
    let line = without_digits(line.trim_start(), "lasted_ms=");
    format!("In the log:\n\n```\n{line}\n```\n\n")
}

/// With the number that follows `prefix` masked.
fn without_digits(line: &str, prefix: &str) -> String {
    let mut parts = line.split(prefix);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |line, part| {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        line + prefix + ANY + rest
    })
}

/// Series of `/metrics`, each with its value or without.
async fn metrics(service: &Service, series: &[(&str, bool)]) -> String {
    let text = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    let lines = series.iter().map(|(name, with_value)| {
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} is missing in {text}"));
        if *with_value { line.to_owned() } else { format!("{name} {ANY}") }
    });
    let lines = lines.collect::<Vec<_>>().join("\n");
    format!("In `/metrics`:\n\n```\n{lines}\n```\n\n")
}
