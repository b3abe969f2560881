//! A real Prometheus, with the files of `deploy/prometheus`.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Process, Service, free_port, http_client};

/// A configuration of `deploy/prometheus` with `targets` instead of its discovery.
pub(crate) fn shipped(file: &str, targets: &Value) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    let mut config: Value =
        serde_saphyr::from_str(&fs::read_to_string(folder.join(file)).unwrap()).unwrap();
    for rules in config["rule_files"].as_array_mut().unwrap() {
        *rules = json!(folder.join(rules.as_str().unwrap()));
    }
    let scrape = config["scrape_configs"][0].as_object_mut().unwrap();
    scrape.retain(|key, _| !key.ends_with("_sd_configs"));
    scrape.insert("static_configs".to_owned(), targets.clone());
    config
}

/// A separate Prometheus, with the rules of `deploy/prometheus`.
pub(crate) struct Prometheus {
    // Ends before its folder is removed.
    _process: Process,
    _folder: TempDir,
    base: String,
    http: reqwest::Client,
}

impl Prometheus {
    /// Faster than the shipped intervals.
    pub(crate) fn scraping(service: &Service) -> Self {
        let mut config = shipped("prometheus.yml", &json!([{"targets": [target(service)]}]));
        config["global"] = json!({"scrape_interval": "1s", "evaluation_interval": "1s"});
        Self::start(&config)
    }

    pub(crate) fn start(config: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("prometheus.yml");
        // JSON is also YAML.
        fs::write(&file, config.to_string()).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stderr(Stdio::null());
        let remedy = "apt-get install -y --no-install-recommends prometheus";
        let process = Process::start(&mut command, remedy);
        let base = format!("http://{address}");
        Self { _process: process, _folder: folder, base, http: http_client().build().unwrap() }
    }

    /// The result of a query; `None` while Prometheus does not answer.
    pub(crate) async fn query(&self, query: &str) -> Option<Vec<Value>> {
        let request = self.http.get(format!("{}/api/v1/query", self.base));
        let answer = request.query(&[("query", query)]).send().await.ok()?;
        let answer: Value = answer.json().await.ok()?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().cloned()
    }

    /// Its alerts, pending and firing, with their texts.
    pub(crate) async fn alerts(&self) -> Vec<Value> {
        let answer = self.http.get(format!("{}/api/v1/alerts", self.base)).send().await.unwrap();
        let mut answer: Value = answer.json().await.unwrap();
        serde_json::from_value(answer["data"]["alerts"].take()).unwrap()
    }
}

/// A service as a target.
pub(crate) fn target(service: &Service) -> &str {
    service.base.trim_start_matches("http://")
}
