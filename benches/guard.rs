//! Measures the overhead of a managed connection per call: `cargo bench --bench guard`.
//!
//! Circuit breakers of other libraries run beside ours in the same process, so that the ratio holds
//! on any machine.

use std::{convert::Infallible, future::poll_fn, hint::black_box, sync::Arc, time::Duration};

use agentarea_api::{
    config::{
        BackendConfig, BackendDescriptor, CircuitBreaker, Pool, Probe, Section, Startup, Table,
    },
    connection::{
        Backend, Breaker, BuildContext, Factory, Family, Force, Managed, Operation, Policies,
        Registry, Sample, Settings,
    },
    error::Error,
    tasks::Tasks,
    telemetry::metrics::Metrics,
};
use async_trait::async_trait;
use criterion::{Criterion, criterion_group, criterion_main};
use failsafe::CircuitBreaker as _;
use futures_util::FutureExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep},
};
use tower::{Service, service_fn};
use tower_resilience_circuitbreaker::CircuitBreakerLayer;

const CALL: Operation = Operation::idempotent("call");
const GOOD: Sample = Sample { failed: false, slow: false };

/// A backend that answers at once.
#[derive(Debug)]
struct Instantly;

impl Family for Instantly {
    const OPERATIONS: &'static [Operation] = &[CALL];
}

#[async_trait]
impl Backend for Instantly {
    async fn probe(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn close(&self) {}
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct NoConfig {}

impl BackendConfig for NoConfig {
    fn address(&self) -> String {
        "in this process".to_owned()
    }
}

struct InstantlyFactory;

#[async_trait]
impl Factory<Instantly> for InstantlyFactory {
    fn descriptor(&self) -> BackendDescriptor {
        BackendDescriptor {
            family: "bench",
            name: "instantly",
            variables: &[],
            shared: false,
            example: "",
            table: Table::of::<NoConfig>(),
        }
    }

    async fn build(&self, _: &Section, _: &BuildContext) -> Result<Arc<Instantly>, Error> {
        Ok(Arc::new(Instantly))
    }
}

/// Returns a connection that is built and watched.
async fn built() -> Managed<Instantly> {
    let registry = Registry::new("bench").register(InstantlyFactory);
    let metrics = Metrics::new("0", "0").connection("bench");
    let connection = Managed::new(registry, "bench".into(), metrics, Tasks::default());
    connection.start(Settings {
        backend: "instantly".to_owned(),
        section: Section::default(),
        startup: Startup::Wait,
        startup_timeout: Duration::from_secs(10),
        required: true,
        pool: Pool::default(),
        policies: Policies::default(),
        probe: Probe::default(),
    });
    connection.started().await.expect("it is built");
    while connection.client().lease().await.is_err() {
        sleep(Duration::from_millis(1)).await;
    }
    connection
}

fn calls(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let connection = runtime.block_on(built());
    let client = connection.client();
    let mut group = criterion.benchmark_group("call");
    group.bench_function("guarded, good", |bencher| {
        bencher.to_async(&runtime).iter(|| {
            client.call(CALL, |backend| async move {
                black_box(backend);
                Ok(())
            })
        });
    });
    group.bench_function("get the built backend", |bencher| {
        bencher
            .to_async(&runtime)
            .iter(|| async { drop(black_box(connection.client().lease().await)) });
    });
    connection.force_circuit(Force::Open);
    group.bench_function("refused by an open breaker", |bencher| {
        bencher.to_async(&runtime).iter(|| client.call(CALL, |_| async { Ok(()) }));
    });
    group.finish();
}

fn breakers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("breaker, closed, good call");
    let ours = Breaker::new(CircuitBreaker::default(), Instant::now());
    let call = |now| {
        if let (Ok(pass), _) = ours.admit(black_box(now)) {
            black_box(pass.finish(GOOD, now));
        }
    };
    // The guard has already read the clock for itself, as have the callers of other breakers.
    let now = Instant::now();
    group.bench_function("ours", |bencher| bencher.iter(|| call(now)));
    group.bench_function("ours, with a look at the clock", |bencher| {
        bencher.iter(|| call(Instant::now()));
    });
    let failsafe = failsafe::Config::new().build();
    group.bench_function("failsafe", |bencher| {
        bencher.iter(|| black_box(failsafe.call(|| Ok::<_, ()>(()))));
    });
    let recloser = recloser::Recloser::default();
    group.bench_function("recloser", |bencher| {
        bencher.iter(|| black_box(recloser.call(|| Ok::<_, ()>(()))));
    });
    let mut layered = CircuitBreakerLayer::builder()
        .build()
        .expect("its defaults")
        .layer_fn(service_fn(|()| async { Ok::<(), Infallible>(()) }));
    group.bench_function("tower-resilience", |bencher| {
        bencher.iter(|| {
            let ready = poll_fn(|context| layered.poll_ready(context)).now_or_never();
            assert!(black_box(ready).is_some());
            black_box(layered.call(()).now_or_never())
        });
    });
    group.finish();
}

criterion_group!(benches, breakers, calls);
criterion_main!(benches);
