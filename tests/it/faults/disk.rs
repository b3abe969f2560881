//! A disk that is full, and a file that is taken away.

use std::{fs, path::Path, process::Command};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Service, Setup, cloud_event, eventually, send_cloud_event, signal};

/// A small separate file system.
struct Disk(TempDir);

impl Disk {
    fn of(size: &str) -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        disk.mount(&format!("size={size}"));
        disk
    }

    fn grow_to(&self, size: &str) {
        self.mount(&format!("remount,size={size}"));
    }

    fn mount(&self, options: &str) {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(self.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "run the tests as root, who may mount: {said}");
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status().is_ok();
    }
}

#[tokio::test]
async fn accepted_work_survives_a_full_disk_and_more_is_accepted_once_there_is_room() {
    let disk = Disk::of("3m");
    let path = disk.path().join("agentarea.db");
    let setup = Setup::new().set("database.sqlite.path", path.to_str().unwrap());
    let service = setup.start().await;
    service.healthy().await;
    let event = |n: usize| {
        let mut event = cloud_event("a", n);
        event["padding"] = json!("x".repeat(20_000));
        event
    };
    let mut accepted = 0;
    let (status, problem) = loop {
        let answer = send_cloud_event(&service, &event(accepted)).await;
        if answer.0 != 202 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 1000, "the disk is never full");
    };
    assert!(accepted > 0);
    assert_eq!(status, 503, "{problem}");
    service.health("the outage is seen", |health| health["status"] == "unhealthy").await;

    disk.grow_to("64m");
    service.healthy().await;
    assert_eq!(send_cloud_event(&service, &event(accepted)).await.0, 202);
    let service = service.kill().start().await;
    service.healthy().await;
    let expected: Vec<String> = (0..=accepted).map(|n| format!("a-{n}")).collect();
    let mut events = service.follow("", Some("0-0")).await;
    assert_eq!(events.next().await.name.as_deref(), Some("gap"), "the stream began later");
    assert_eq!(events.ids(accepted + 1).await, expected);
}

/// Asserts that the service accepts nothing and reports not ready.
async fn serves_nobody(service: &Service) {
    // From the first request on, before any probe notices.
    let at_once = join_all(
        (0..20).map(|n| async move { send_cloud_event(service, &cloud_event("lost", n)).await }),
    );
    for (status, problem) in at_once.await {
        assert_eq!(status, 503, "{problem}");
        assert!(problem["type"].as_str().unwrap().ends_with(":unavailable"), "{problem}");
    }
    let unready = async || {
        let ready = service.get("/readyz").send().await.unwrap();
        (ready.status() == 503).then_some(())
    };
    eventually("it is not ready", unready).await;
}

/// A service that has stopped, whose database has one event.
async fn backup_with(event: &Value) -> Service {
    let mut service = Setup::new().start().await;
    service.healthy().await;
    assert_eq!(send_cloud_event(&service, event).await.0, 202);
    signal(&service.child, "-TERM");
    assert_eq!(service.exit_code().await, Some(0));
    service
}

/// The ids of all stored events, except those of the service itself.
async fn kept(service: &Service, count: usize) -> Vec<String> {
    let mut events = service.follow("?type=t", Some("0-0")).await;
    assert_eq!(events.next().await.name.as_deref(), Some("gap"), "the stream began later");
    events.ids(count).await
}

#[tokio::test]
async fn nothing_is_accepted_while_the_file_is_gone_and_it_goes_on_with_the_one_that_comes_back() {
    let service = Setup::new().start().await;
    service.healthy().await;
    assert_eq!(send_cloud_event(&service, &cloud_event("a", 0)).await.0, 202);
    let folder = service.path().join("data");
    let (file, aside) = (folder.join("agentarea.db"), folder.join("aside.db"));
    fs::rename(&file, &aside).unwrap();
    serves_nobody(&service).await;
    service.health("the outage is seen", |health| health["status"] == "unhealthy").await;
    assert!(service.log().contains("put it back, or restart the service"), "{}", service.log());
    assert!(!file.exists(), "an empty one took its place");

    fs::rename(&aside, &file).unwrap();
    service.healthy().await;
    assert_eq!(send_cloud_event(&service, &cloud_event("a", 1)).await.0, 202);

    let backup = backup_with(&cloud_event("b", 0)).await;
    fs::rename(backup.path().join("data/agentarea.db"), &file).unwrap();
    let mut expected = vec!["b-0".to_owned()];
    eventually("it goes on with the other file", async || {
        let n = expected.len();
        let (status, problem) = send_cloud_event(&service, &cloud_event("b", n)).await;
        assert!([202, 503].contains(&status), "{problem}");
        (status == 202).then(|| expected.push(format!("b-{n}")))
    })
    .await;
    let service = service.kill().start().await;
    service.healthy().await;
    assert_eq!(kept(&service, 2).await, expected);

    fs::remove_file(&file).unwrap();
    serves_nobody(&service).await;
    // A restart starts with an empty file, as the error says.
    let service = service.kill().start().await;
    service.healthy().await;
    assert_eq!(send_cloud_event(&service, &cloud_event("c", 0)).await.0, 202);
}
