//! A disk that is full.

use std::{path::Path, process::Command};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{Setup, cloud_event, send_cloud_event};

/// A small file system of its own.
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
async fn what_was_accepted_before_the_disk_was_full_is_kept_and_more_once_there_is_room() {
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
