//! Twelve outages of the real program with its default intervals, watched by a real Prometheus with
//! the configuration and rules of `deploy/prometheus`. Each raises its alert within a minute, and
//! `docs/outages.md` shows the operator's view of it:
//!
//! ```sh
//! WRITE_OUTAGES=1 cargo test --test it outages    # rewrites it
//! ```

mod evidence;
mod scenes;

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::interval;

use self::scenes::Scene;
use crate::support::{
    eventually,
    prometheus::{Prometheus, shipped, target},
};

/// The promised time from the fault to the alert.
const ALERTED: Duration = Duration::from_mins(1);

const INTRODUCTION: &str = "# Twelve outages

Played through on the real program, with the intervals it is shipped with and a Prometheus that has the
rules of [deploy/prometheus](../deploy/prometheus); each alert fired within a minute. What is shown is
what the program said, but for times, numbers that differ from run to run and addresses. A test plays
them again and compares (`WRITE_OUTAGES=1 cargo test --test it outages` writes this page).
[troubleshooting.md](troubleshooting.md) has causes and remedies.
";

/// The firing alert that a query finds.
async fn firing(prometheus: &Prometheus, scene: &Scene) -> Option<Value> {
    let mut labels = format!("alertname=\"{}\",alertstate=\"firing\"", scene.alert);
    for (name, value) in scene.labels() {
        write!(labels, ",{name}=\"{value}\"").unwrap();
    }
    prometheus.query(&format!("ALERTS{{{labels}}}")).await?.pop()
}

/// Waits for the scene's alert; returns its text.
async fn alerted(prometheus: &Prometheus, scene: &Scene) -> Value {
    let begin = scene.begun.expect("the fault is there");
    let mut pace = interval(Duration::from_millis(500));
    while firing(prometheus, scene).await.is_none() {
        assert!(begin.elapsed() < ALERTED, "{}: no {}", scene.title, scene.alert);
        pace.tick().await;
    }
    println!("{}: {} after {:?}", scene.title, scene.alert, begin.elapsed());
    let alerts = prometheus.alerts().await;
    let ours = alerts.into_iter().find(|alert| {
        let labels = scene.labels();
        alert["labels"]["alertname"] == scene.alert
            && labels.iter().all(|(name, value)| alert["labels"][*name] == **value)
    });
    ours.expect("what fires is listed")
}

/// All scenes at the same time, because each takes most of a minute.
#[tokio::test(flavor = "multi_thread")]
async fn twelve_outages_raise_their_alerts_within_a_minute_and_look_as_documented() {
    let mut scenes = scenes::all().await;
    assert_eq!(scenes.len(), 12);
    let targets: Vec<&str> = scenes.iter().map(|scene| target(&scene.service)).collect();
    let config = shipped("prometheus.yml", &json!([{"targets": targets}]));
    let prometheus = Prometheus::start(&config);
    eventually("Prometheus has scraped all of them", async || {
        let up = prometheus.query("count(agentarea_build_info)").await?;
        (up.first()?["value"][1] == "12").then_some(())
    })
    .await;
    for scene in scenes.iter().filter(|scene| scene.begun.is_none()) {
        let early = firing(&prometheus, scene).await;
        assert!(early.is_none(), "{}: before the fault: {early:?}", scene.title);
    }

    join_all(scenes.iter_mut().map(Scene::begin)).await;
    let sections = scenes.iter().map(|scene| async {
        let alert = alerted(&prometheus, scene).await;
        evidence::section(scene, &alert).await
    });
    let sections = join_all(sections).await;
    let document = format!("{INTRODUCTION}\n{}", sections.join("\n"));
    compare(&document);
    for scene in scenes {
        scene.end().await;
    }
}

fn is_to_be_written() -> bool {
    std::env::var_os("WRITE_OUTAGES").is_some()
}

fn compare(document: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/outages.md");
    if is_to_be_written() {
        fs::write(&path, document).unwrap();
        return;
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    let mut lines = checked_in.lines().zip(document.lines());
    if let Some((old, new)) = lines.find(|(old, new)| old != new) {
        panic!(
            "docs/outages.md says\n  {old}\nand now it is\n  {new}\nrewrite it with WRITE_OUTAGES=1"
        );
    }
    assert!(checked_in == document, "docs/outages.md ends early; write it with WRITE_OUTAGES=1");
}
