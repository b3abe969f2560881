//! The queries and rules of `deploy/` and `docs/monitoring.md`, on a real Prometheus that scrapes
//! the real program.

use std::{fs, path::Path};

use agentarea_api::error::ErrorKind;
use serde_json::{Value, json};

#[cfg(feature = "redis")]
use crate::support::Redis;
use crate::support::{
    Setup, eventually,
    prometheus::{Prometheus, shipped, target},
};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The queries of the page's tables, by the name of the metric.
fn queries() -> Vec<(String, String)> {
    let text = fs::read_to_string(repository().join("docs/monitoring.md")).unwrap();
    let (_, monitoring) = text.split_once("\n## Queries\n").unwrap();
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
async fn the_documented_queries_answer_on_a_real_prometheus() {
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
        // Queries with a comparison are alerts, and nothing is wrong now.
        let alert = [" > 0", " > 3", " < 0.1", "== 1"].iter().any(|end| query.ends_with(end));
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

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

/// The text after `prefix` on each line that starts with it, in order.
fn lines_with<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let mut found: Vec<&str> =
        text.lines().filter_map(|line| line.trim_start().strip_prefix(prefix)).collect();
    found.sort_unstable();
    found
}

#[test]
fn each_alert_has_its_section_in_the_troubleshooting_guide_and_each_section_its_alert() {
    let (alerts, guide) = (read("deploy/prometheus/alerts.yml"), read("docs/troubleshooting.md"));
    let names = lines_with(&alerts, "- alert: ");
    assert!(names.len() >= 15, "{names:?}");
    let sections: Vec<&str> = lines_with(&guide, "## AgentArea");
    assert_eq!(sections, names.iter().map(|name| &name["AgentArea".len()..]).collect::<Vec<_>>());
    for name in names {
        let runbook = format!("docs/troubleshooting.md#{}\n", name.to_lowercase());
        assert!(alerts.contains(&runbook), "{name} does not name its section");
        let (_, section) = guide.split_once(&format!("\n## {name}\n")).unwrap();
        let section = section.split("\n## ").next().unwrap();
        for part in ["**You see** ", "**Causes** ", "**Remedy** "] {
            assert!(section.contains(part), "{name} has no {part}");
        }
    }
}

#[test]
fn the_troubleshooting_guide_explains_every_error_class_and_no_other() {
    let guide = read("docs/troubleshooting.md");
    let (_, classes) = guide.split_once("\n## Error classes\n").unwrap();
    let classes = classes.split("\n## ").next().unwrap();
    let mut explained: Vec<&str> =
        lines_with(classes, "| `").iter().filter_map(|row| row.split('`').next()).collect();
    explained.sort_unstable();
    let mut known = ErrorKind::ALL.map(ErrorKind::as_str);
    known.sort_unstable();
    assert_eq!(explained, known);
}

/// The anchor of a heading.
fn anchor(heading: &str) -> String {
    heading.to_lowercase().replace(' ', "-")
}

#[test]
fn the_troubleshooting_guide_and_the_outages_lead_to_each_other() {
    let (guide, outages) = (read("docs/troubleshooting.md"), read("docs/outages.md"));
    let links = |text: &str, page: &str| {
        let before = format!("{page}#");
        let parts = text.split(&before).skip(1);
        let mut anchors: Vec<String> =
            parts.filter_map(|part| Some(part.split_once(')')?.0.to_owned())).collect();
        anchors.sort_unstable();
        anchors.dedup();
        anchors
    };
    let played: Vec<String> = lines_with(&outages, "## ").into_iter().map(anchor).collect();
    assert_eq!(played.len(), 12);
    assert_eq!(links(&guide, "outages.md"), played);
    let sections: Vec<String> = lines_with(&guide, "## ").into_iter().map(anchor).collect();
    for linked in links(&outages, "troubleshooting.md") {
        assert!(sections.contains(&linked), "{linked} is no section");
    }
}

/// Pods as Kubernetes would describe them: one of the API, an evicted one, and a worker, which does
/// not answer. Prometheus itself applies the file's relabelling.
#[tokio::test]
async fn the_configuration_for_kubernetes_finds_the_apis_pods_and_shows_its_key() {
    let made = Setup::new().output_of(&["key", "new", "--scopes", "read"]).await;
    let printed = String::from_utf8(made.stdout).unwrap();
    let key = printed.lines().find_map(|line| line.trim().strip_prefix("aak_")).unwrap();
    let list = printed.lines().find_map(|line| line.trim().strip_prefix("AGENTAREA_AUTH__KEYS="));
    let service = Setup::new()
        .set("auth.mode", "api_key")
        .set("auth.open_metrics", "false")
        .variable("AGENTAREA_AUTH__KEYS", list.unwrap().trim_matches('\''))
        .start()
        .await;
    service.healthy().await;
    assert_eq!(service.get("/metrics").send().await.unwrap().status(), 401);

    let pod = |address: &str, app: &str, port: &str, phase: &str, name: &str| {
        json!({"targets": [address], "labels": {
            "__meta_kubernetes_pod_label_app_kubernetes_io_name": app,
            "__meta_kubernetes_pod_container_port_name": port,
            "__meta_kubernetes_pod_phase": phase,
            "__meta_kubernetes_pod_name": name,
        }})
    };
    let targets = json!([
        pod(target(&service), "agentarea-api", "http", "Running", "agentarea-api-0"),
        pod("127.0.0.1:1", "agentarea-api", "http", "Failed", "agentarea-api-1"),
        pod("127.0.0.1:2", "agentarea-worker", "", "Running", "agentarea-worker-0"),
    ]);
    let mut config = shipped("kubernetes.yml", &targets);
    let file = service.path().join("metrics_key");
    fs::write(&file, format!("aak_{key}\n")).unwrap();
    let credentials = &mut config["scrape_configs"][0]["authorization"]["credentials_file"];
    assert!(credentials.is_string(), "{credentials}");
    *credentials = json!(file);
    config["global"]["scrape_interval"] = json!("1s");
    let prometheus = Prometheus::start(&config);
    let up = eventually("Prometheus is let in", async || {
        let found = prometheus.query("up").await?;
        (found.first()?["value"][1] == "1").then_some(found)
    })
    .await;
    let pods: Vec<&Value> = up.iter().map(|sample| &sample["metric"]["instance"]).collect();
    assert_eq!(pods, ["agentarea-api-0"]);
}

/// Routes that rules, their tests and the dashboard select by name.
fn selected_routes() -> Vec<String> {
    let files = ["prometheus/recording.yml", "prometheus/alerts.yml", "prometheus/tests.yml"];
    let mut routes: Vec<String> = Vec::new();
    for file in files.iter().chain(&["grafana/agentarea-api.json"]) {
        let text = fs::read_to_string(repository().join("deploy").join(file)).unwrap();
        let matchers = text.split("route").skip(1);
        let values = matchers.filter_map(|rest| {
            let (operator, rest) = rest.split_once('"')?;
            ["=", "=~", "!~", "!="].contains(&operator).then(|| rest.split_once('"'))?
        });
        routes.extend(values.flat_map(|(value, _)| value.split('|')).map(str::to_owned));
    }
    routes.sort();
    routes.dedup();
    routes
}

#[tokio::test]
async fn rules_select_routes_by_labels_that_exist() {
    let service = Setup::new().start().await;
    let routes = selected_routes();
    assert!(routes.len() >= 5, "{routes:?}");
    for route in routes {
        let path = route.replace("{id}", "x").replace(".+", "connections");
        let answer = service.get(&path).send().await.unwrap();
        let label = route.replace(".+", "connections");
        let label = format!("route=\"{label}\",status=\"{}\"", answer.status().as_u16());
        drop(answer);
        eventually(&format!("{label} is a series"), async || {
            let metrics = service.get("/metrics").send().await.unwrap().text().await.unwrap();
            metrics.contains(&label).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn every_series_of_a_connection_exists_before_its_first_call() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let text = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    for connection in ["event_broker", "execution_service", "database"] {
        for series in [
            r#"connection_up{connection="NAME"} 1"#,
            r#"connection_builds_total{connection="NAME",outcome="success"} "#,
            r#"connection_builds_total{connection="NAME",outcome="failure"} "#,
            r#"connection_uses_total{connection="NAME"} "#,
            r#"connection_pool_max{connection="NAME"} "#,
            r#"connection_pool_in_use{connection="NAME"} "#,
            r#"connection_pool_idle{connection="NAME"} "#,
            r#"connection_pool_waiting{connection="NAME"} "#,
            r#"connection_leaks_total{connection="NAME"} 0"#,
            r#"connection_acquire_seconds_count{connection="NAME",phase="wait"} "#,
            r#"connection_acquire_seconds_count{connection="NAME",phase="connect"} "#,
            r#"connection_acquire_seconds_count{connection="NAME",phase="validate"} "#,
            r#"call_attempts_total{connection="NAME"} "#,
            r#"probes_total{connection="NAME",outcome="success"} "#,
            r#"probes_total{connection="NAME",outcome="failure"} "#,
            r#"probe_seconds_count{connection="NAME"} "#,
            r#"probe_age_seconds{connection="NAME"} "#,
            r#"circuit_breaker_state{connection="NAME",state="closed"} 1"#,
            r#"circuit_breaker_state{connection="NAME",state="half_open"} 0"#,
            r#"circuit_breaker_transitions_total{connection="NAME",to="open"} 0"#,
            r#"call_rejected_total{connection="NAME",reason="queue_full"} 0"#,
            r#"call_retries_total{connection="NAME"} 0"#,
            r#"call_errors_total{connection="NAME",class="circuit_open"} 0"#,
            r#"retry_budget_available_ratio{connection="NAME"} "#,
            r#"connection_recovery_seconds_count{connection="NAME"} 0"#,
            r#"probe_interval_seconds{connection="NAME"} 0.2"#,
        ] {
            let series = format!("agentarea_{}", series.replace("NAME", connection));
            assert!(text.contains(&series), "{series} is missing in\n{text}");
        }
    }
    let publish = r#"agentarea_call_seconds_count{connection="event_broker",operation="publish",outcome="failure"} 0"#;
    assert!(text.contains(publish), "{text}");
}
