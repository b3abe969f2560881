//! The README's queries on a real Prometheus that scrapes the real program.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Service, Setup, eventually, free_port};

/// A Prometheus of its own.
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
        let jobs = format!("[{{job_name: api, static_configs: [{{targets: ['{target}']}}]}}]");
        fs::write(&config, format!("global: {{scrape_interval: 1s}}\nscrape_configs: {jobs}\n"))
            .unwrap();
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
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(readme).unwrap();
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
