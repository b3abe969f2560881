//! One replica: the services of the program on backends of the simulation.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    broker::SimulatedBroker,
    database::SimulatedDatabase,
    link::{Link, Replica},
    service::SimulatedService,
    world::{ECHO, Peer, REFUSED, UNREADABLE, World},
};
use crate::{
    backends::{
        database::{self, Database},
        event_broker::{self, EventBroker},
        execution_service::{self, ExecutionService},
    },
    config::{
        BackendConfig, BackendDescriptor, Config, Connection, Section, Table, WorkflowConfig,
    },
    connection::{Backend, BuildContext, Factory, Family, Managed, Registry, Settings},
    error::Error,
    services::{
        accept::Acceptor,
        commits::Sharing,
        events::{Events, relay::Relay},
        executions::{Executions, Parts},
        housekeeping::Housekeeping,
    },
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// The name of the backends.
const BACKEND: &str = "simulated";
/// The time within which a replica stops.
const GRACE: Duration = Duration::from_secs(30);

/// One replica.
pub(super) struct Member {
    pub(super) replica: Arc<Replica>,
    pub(super) events: Events,
    pub(super) executions: Executions,
    /// The pools of connections and their sizes.
    pub(super) pools: Vec<(usize, Arc<Semaphore>)>,
    stop: CancellationToken,
    ends: Vec<JoinHandle<()>>,
    managed: (Managed<dyn Database>, Managed<dyn EventBroker>, Managed<dyn ExecutionService>),
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct NoConfig {}

impl BackendConfig for NoConfig {
    fn address(&self) -> String {
        "in memory".to_owned()
    }
}

/// Makes a backend of one family of a way to it.
struct Simulated<B: ?Sized> {
    family: &'static str,
    link: Link,
    make: fn(Link) -> Arc<B>,
}

#[async_trait]
impl<B: ?Sized + Backend> Factory<B> for Simulated<B> {
    fn descriptor(&self) -> BackendDescriptor {
        BackendDescriptor {
            family: self.family,
            name: BACKEND,
            variables: &[],
            shared: true,
            example: "",
            table: Table::of::<NoConfig>(),
        }
    }

    async fn build(&self, _: &Section, _: &BuildContext) -> Result<Arc<B>, Error> {
        Ok((self.make)(self.link.clone()))
    }
}

fn settings() -> Settings {
    Settings {
        backend: BACKEND.to_owned(),
        section: Section(serde_json::json!({})),
        ..Settings::from(&Connection::database())
    }
}

fn config() -> Config {
    let mut config = Config::default();
    for workflow in [ECHO, REFUSED, UNREADABLE] {
        config.workflows.insert(workflow.to_owned(), WorkflowConfig::default());
    }
    config.execution_service.backend = BACKEND.to_owned();
    // Short enough that what was lost shows within one run.
    config.executions.confirm_within = Duration::from_secs(10);
    config
}

/// What the connections of a replica are made of.
struct Connections {
    world: Arc<World>,
    replica: Arc<Replica>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    pools: Vec<(usize, Arc<Semaphore>)>,
}

impl Connections {
    fn to<B: ?Sized + Backend + Family>(
        &mut self,
        peer: Peer,
        family: &'static str,
        size: usize,
        make: fn(Link) -> Arc<B>,
    ) -> Managed<B> {
        let pool = Arc::new(Semaphore::new(size));
        self.pools.push((size, Arc::clone(&pool)));
        let (world, replica) = (Arc::clone(&self.world), Arc::clone(&self.replica));
        let link = Link { world, peer, replica, pool };
        let registry = Registry::new(family).register(Simulated { family, link, make });
        let metrics = self.metrics.connection(family);
        let managed =
            Managed::new(registry, self.replica.name.as_str().into(), metrics, self.tasks.clone());
        managed.start(settings());
        managed
    }
}

impl Member {
    pub(super) fn start(world: &Arc<World>, number: usize, pool: usize) -> Self {
        let replica = Arc::new(Replica { name: format!("replica-{number}"), ..Replica::default() });
        let mut to = Connections {
            world: Arc::clone(world),
            replica: Arc::clone(&replica),
            metrics: Metrics::new("0", "0"),
            tasks: Tasks::default(),
            pools: Vec::new(),
        };
        let database = to.to::<dyn Database>(Peer::Database, database::FAMILY, pool, |link| {
            Arc::new(SimulatedDatabase(link))
        });
        let broker = to.to::<dyn EventBroker>(Peer::Broker, event_broker::FAMILY, pool, |link| {
            Arc::new(SimulatedBroker(link))
        });
        // One connection carries any number of calls.
        let service = to.to::<dyn ExecutionService>(
            Peer::Service,
            execution_service::FAMILY,
            Semaphore::MAX_PERMITS,
            |link| Arc::new(SimulatedService(link)),
        );
        let Connections { metrics, tasks, pools, .. } = to;
        let (config, owner) = (config(), Arc::from(replica.name.as_str()));
        let sharing = Sharing { linger: config.outbox.linger, most: (pool / 2).clamp(1, 2) };
        let relay = Relay::new(
            Arc::clone(&owner),
            database.client(),
            broker.client(),
            config.outbox.clone(),
            Arc::clone(&metrics),
        );
        let keep_answers = config.idempotency.retention;
        let acceptor = Acceptor::new(database.client(), tasks.clone(), sharing, keep_answers);
        let events = Events::new(acceptor.clone(), broker.client(), relay.clone());
        let parts = Parts {
            owner: Arc::clone(&owner),
            acceptor,
            database: database.client(),
            service: service.client(),
            events: events.clone(),
            metrics,
            sharing,
            tasks: tasks.clone(),
        };
        let executions = Executions::new(parts, &config);
        let housekeeping = Arc::new(Housekeeping::new(owner, database.client(), &config));
        let stop = CancellationToken::new();
        let ends = vec![
            relay.start(&tasks, &stop),
            executions.start_tasks(&tasks, &stop),
            tasks.keep("housekeeping", &stop, &housekeeping, Housekeeping::run),
        ];
        let managed = (database, broker, service);
        Self { replica, events, executions, pools, stop, ends, managed }
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.replica.killed.load(Ordering::Relaxed)
    }

    pub(super) async fn stop(&mut self) {
        self.stop.cancel();
        for end in self.ends.drain(..) {
            let ended = timeout(GRACE, end).await;
            ended.expect("it stops in time").expect("it does not panic");
        }
        let (database, broker, service) = &self.managed;
        database.close().await;
        broker.close().await;
        service.close().await;
    }
}
