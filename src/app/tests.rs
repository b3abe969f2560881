//! No task of the program stays absent for long.

#![cfg(feature = "sqlite")]

use std::time::Duration;

use serde_json::json;
use tokio::time::{interval, timeout};

use super::*;
use crate::{
    config::{self, Sources},
    model::{
        events::Event,
        executions::{Execution, Status},
    },
    services::{
        events::{
            ChosenBy,
            stream::{Filter, Next},
        },
        executions::{NewExecution, Started},
    },
};

const DEADLINE: Duration = Duration::from_secs(30);

/// The application on embedded backends, without a listener.
struct World {
    app: App,
    state: State,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let app = App::default();
        let sources = Sources {
            working_dir: folder.path().to_owned(),
            overrides: overrides(folder.path()),
            ..Sources::default()
        };
        let loaded = config::load(&sources, &app.descriptors()).unwrap();
        let state = app.state(Arc::new(loaded.config.clone()));
        app.manager.start(&loaded.config);
        app.start_work(&state, ReloadSignal::listen().unwrap());
        app.manager.ready().await;
        Self { app, state, _folder: folder }
    }

    fn restarts(&self, task: &str) -> u64 {
        self.app.lifecycle.tasks.restarts(task)
    }

    /// Checks that an event reaches a follower and that an execution completes.
    async fn work(&self) {
        let mut follower = self.state.streams.subscribe(Filter::default(), None).await.unwrap();
        let event = Event::new("test", None, None);
        self.state.events.accept(vec![event], ChosenBy::Service, None, String::new).await.unwrap();
        while !matches!(follower.next().await, Some(Next::Events(_))) {}

        let request = NewExecution {
            workflow: "echo".to_owned(),
            input: json!(1).into(),
            id: None,
            timeout: None,
        };
        let started = self.state.executions.start(request, None, |_| String::new()).await;
        let Ok(Started::New(execution)) = started else { panic!("{started:?}") };
        while self.state(&execution).await != Status::Completed {}
    }

    async fn state(&self, execution: &Execution) -> Status {
        let waited = self.state.executions.wait(&execution.id, Duration::from_secs(5)).await;
        waited.unwrap().status
    }
}

fn overrides(folder: &std::path::Path) -> Vec<(String, String)> {
    let path = folder.join("kept.db").display().to_string();
    vec![("database.sqlite.path".to_owned(), path)]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_task_that_dies_is_started_again_and_work_goes_on() {
    let world = World::start().await;
    timeout(DEADLINE, world.work()).await.expect("it works before");
    let mut tasks = world.app.lifecycle.tasks.names();
    tasks.sort();
    assert_eq!(
        tasks,
        [
            "database_pool",
            "database_probes",
            "embedded_renewal",
            "embedded_runner",
            "event_broker_probes",
            "event_listener",
            "event_relay",
            "event_stream",
            "event_wakeups",
            "execution_follower",
            "execution_hand_over",
            "execution_service_probes",
            "housekeeping",
            "outbox_count",
            "reload",
        ]
    );
    let mut pace = interval(Duration::from_millis(5));
    for task in &tasks {
        let before = world.restarts(task);
        world.app.lifecycle.tasks.kill(task);
        let restarted = async {
            while world.restarts(task) == before {
                pace.tick().await;
            }
        };
        timeout(DEADLINE, restarted).await.unwrap_or_else(|_| panic!("{task} is missing"));
        timeout(DEADLINE, world.work())
            .await
            .unwrap_or_else(|_| panic!("nothing moves after {task} was started again"));
    }
    let metrics = world.state.metrics.text();
    for task in &tasks {
        let series = format!("agentarea_tasks_restarted_total{{task=\"{task}\"}} 1");
        assert!(metrics.contains(&series), "{series} is missing in\n{metrics}");
    }
    assert_eq!(world.app.lifecycle.tasks.hopeless(), None);
}

/// Every task ends when the connections close and the stop tokens are cancelled.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_program_has_no_task_left() {
    let world = World::start().await;
    let mut running = Running {
        draining: world.state.draining.clone(),
        serving: Some(world.app.lifecycle.tasks.spawn(async { true })),
        working: Vec::new(),
        manager: world.app.manager.clone(),
    };
    let server =
        config::Server { drain_delay: Duration::ZERO, ..world.state.config.server.clone() };
    assert!(world.app.lifecycle.stop(&mut running, &server).await);
    assert_eq!(world.app.lifecycle.tasks.names(), Vec::<String>::new());
}
