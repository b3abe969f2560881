//! What `deploy/` and the README ask of Prometheus, on a real one that scrapes the real program.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use agentarea_api::error::ErrorKind;
use serde_json::{Value, json};
use tempfile::TempDir;

#[cfg(feature = "redis")]
use crate::support::Redis;
use crate::support::{Service, Setup, eventually, free_port};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Prometheus of its own, with the rules of `deploy/prometheus`.
struct Prometheus {
    _folder: TempDir,
    child: Child,
    base: String,
    http: reqwest::Client,
}

impl Prometheus {
    fn scraping(service: &Service) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let target = service.base.trim_start_matches("http://");
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{rules}/recording.yml, {rules}/alerts.yml]\n\
             scrape_configs: [{{job_name: agentarea-api, static_configs: [{{targets: ['{target}']}}]}}]\n",
            rules = repository().join("deploy/prometheus").display(),
        );
        fs::write(&config, text).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus is missing: apt-get install -y --no-install-recommends prometheus");
        let base = format!("http://{address}");
        Self { _folder: folder, child, base, http: service.http.clone() }
    }

    /// What a query finds; none while Prometheus does not answer.
    async fn query(&self, query: &str) -> Option<Vec<Value>> {
        let request = self.http.get(format!("{}/api/v1/query", self.base));
        let answer = request.query(&[("query", query)]).send().await.ok()?;
        let answer: Value = answer.json().await.ok()?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().cloned()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _already_dead = self.child.kill().is_err();
        let _reaped = self.child.wait().is_ok();
    }
}

/// The queries of the README's tables, by the name of the metric.
fn queries() -> Vec<(String, String)> {
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, monitoring) = text.split_once("\n## Monitoring\n").unwrap();
    let (monitoring, _) = monitoring.split_once("\n## ").unwrap();
    monitoring
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" | `"))
        .map(|(name, query)| {
            let query = query.trim_end_matches("` |").replace("\\|", "|");
            (name.to_owned(), query)
        })
        .collect()
}

#[tokio::test]
async fn the_readmes_queries_answer_on_a_real_prometheus() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let id = service.execute(&json!({"workflow": "echo"})).await;
    service.result(&id).await;
    let prometheus = Prometheus::scraping(&service);
    // A rate needs two scrapes.
    eventually("Prometheus has scraped twice", async || {
        let scraped = "count_over_time(agentarea_build_info[5m]) >= 2";
        let found = prometheus.query(scraped).await?;
        (!found.is_empty()).then_some(())
    })
    .await;
    let queries = queries();
    assert!(queries.len() >= 14, "{queries:?}");
    for (name, query) in &queries {
        let found = prometheus.query(query).await.expect("Prometheus answers");
        // What compares is an alert, and nothing is wrong.
        let alert =
            [" > 0", " > 15", " < 0.1", "== 0", "== 1"].iter().any(|end| query.ends_with(end));
        assert_eq!(found.is_empty(), alert, "{name}: {query}: {found:?}");
    }
}

/// The queries of the dashboard's panels, by title, with its variables filled in.
#[cfg(feature = "redis")]
fn panels() -> Vec<(String, String)> {
    let text = fs::read_to_string(repository().join("deploy/grafana/agentarea-api.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels
        .flat_map(|panel| {
            panel["targets"].as_array().into_iter().flatten().map(|target| {
                let query = target["expr"].as_str().unwrap();
                let query = query.replace("$job", "agentarea-api");
                (panel["title"].to_string(), query.replace("$__rate_interval", "20s"))
            })
        })
        .collect()
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn an_outage_raises_its_alert_and_every_panel_of_the_dashboard_has_data() {
    let mut redis = Redis::start().await;
    let service = Setup::new()
        .variable("REDIS_URL", &redis.url())
        .variable("AGENTAREA_EVENT_BROKER__PROBE__INTERVAL", "500ms")
        .start()
        .await;
    service.healthy().await;
    let prometheus = Prometheus::scraping(&service);
    let publish = "/v1/events?delivery=direct";
    service.send(publish, &json!({"type": "t"})).await;
    let firing = r#"ALERTS{alertname="AgentAreaConnectionDown",alertstate="firing"}"#;
    eventually("Prometheus scrapes", async || {
        let found = prometheus.query("agentarea_build_info").await?;
        (!found.is_empty()).then_some(())
    })
    .await;
    assert_eq!(prometheus.query(firing).await, Some(Vec::new()));

    redis.down();
    let alert = eventually("the alert fires", async || {
        service.send(publish, &json!({"type": "t"})).await;
        prometheus.query(firing).await?.pop()
    })
    .await;
    assert_eq!(alert["metric"]["connection"], "event_broker", "{alert}");

    redis.up().await;
    service.healthy().await;
    let id = service.execute(&json!({"workflow": "echo"})).await;
    service.result(&id).await;
    let panels = panels();
    assert!(panels.len() > 25, "{panels:?}");
    for (title, query) in panels {
        eventually(&format!("{title} has data: {query}"), async || {
            service.send(publish, &json!({"type": "t"})).await;
            let found = prometheus.query(&query).await?;
            found.iter().any(|sample| sample["value"][1] != "NaN").then_some(())
        })
        .await;
    }
}

#[test]
fn every_alert_has_its_section_in_the_troubleshooting_guide() {
    let read = |path: &str| fs::read_to_string(repository().join(path)).unwrap();
    let (alerts, guide) = (read("deploy/prometheus/alerts.yml"), read("docs/troubleshooting.md"));
    let names: Vec<&str> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 15, "{names:?}");
    for name in names {
        assert!(guide.contains(&format!("\n## {name}\n")), "{name} has no section");
        let runbook = format!("docs/troubleshooting.md#{}\n", name.to_lowercase());
        assert!(alerts.contains(&runbook), "{name} does not name its section");
    }
}

#[test]
fn the_troubleshooting_guide_explains_error_classes_that_exist() {
    let guide = fs::read_to_string(repository().join("docs/troubleshooting.md")).unwrap();
    let (_, table) = guide.split_once("| class |").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let classes: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(class, _)| class)
        .collect();
    let known: Vec<&str> = ErrorKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert!(classes.len() >= 15, "{classes:?}");
    for class in classes {
        assert!(known.contains(&class), "{class} is none of {known:?}");
    }
}

#[tokio::test]
async fn every_series_of_a_connection_exists_before_its_first_call() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let text = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    for connection in ["event_broker", "execution_service", "database"] {
        for series in [
            r#"circuit_breaker_state{connection="NAME",state="closed"} 1"#,
            r#"circuit_breaker_state{connection="NAME",state="half_open"} 0"#,
            r#"circuit_breaker_transitions_total{connection="NAME",to="open"} 0"#,
            r#"call_rejected_total{connection="NAME",reason="queue_full"} 0"#,
            r#"call_retries_total{connection="NAME"} 0"#,
            r#"call_errors_total{connection="NAME",class="circuit_open"} 0"#,
            r#"retry_budget_available_ratio{connection="NAME"} "#,
            r#"connection_recovery_seconds_count{connection="NAME"} 0"#,
        ] {
            let series = format!("agentarea_{}", series.replace("NAME", connection));
            assert!(text.contains(&series), "{series} is missing in\n{text}");
        }
    }
    let publish = r#"agentarea_call_seconds_count{connection="event_broker",operation="publish",outcome="failure"} 0"#;
    assert!(text.contains(publish), "{text}");
}
