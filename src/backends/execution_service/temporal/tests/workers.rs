//! Tests with workers: ours, and an external one.

use temporalio_client::{Client, ClientOptions};
use temporalio_common::protos::temporal::api::{
    workflow::v1::PendingActivityInfo, workflowservice::v1::ResetWorkflowExecutionRequest,
};
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{
    ContinueAsNewOptions, Runtime, SyncWorkflowContext, Worker, WorkerOptions, WorkflowContext,
    WorkflowContextView, WorkflowResult, runtime::RuntimeOptions,
};

use super::*;
use crate::{
    backends::execution_service::{contract, worker},
    model::time,
};

/// Runs a worker during `work`.
async fn with_worker<T>(config: &Config, grace: Duration, work: impl Future<Output = T>) -> T {
    with_worker_of(section(config), grace, work).await
}

async fn with_worker_of<T>(section: Section, grace: Duration, work: impl Future<Output = T>) -> T {
    let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let soft = CancellationToken::new();
    let settings = worker::Settings {
        section,
        instance: "test-worker".into(),
        pool: Pool { connect_timeout: Duration::from_secs(10), ..Pool::default() },
        grace,
    };
    let mut workflows = contract::workflows();
    workflows.insert("seconds".to_owned(), SECONDS);
    let work = async {
        let done = work.await;
        soft.cancel();
        done
    };
    let run = worker::run(settings, workflows, soft.clone());
    let (ended, done) = tokio::join!(run, work);
    ended.unwrap();
    done
}

const SECONDS: Workflow = Workflow::Echo { delay: Duration::from_secs(5) };
const GRACE: Duration = Duration::from_secs(20);

fn step(workflow: &str, definition: Workflow) -> StartRequest {
    StartRequest { workflow: workflow.to_owned(), ..request_of(definition, json!("input")) }
}

#[tokio::test]
async fn temporal_fulfils_the_contract() {
    let mut config = config(&address());
    config.workflow_id_prefix = "contract-".to_owned();
    let temporal = connected(&config).await.unwrap();
    with_worker(&config, GRACE, contract::suite(Arc::new(temporal))).await;
}

#[tokio::test]
async fn the_contract_holds_over_tls() {
    let front = over_tls::guarded().await;
    let config = over_tls::encrypted(&front);
    let temporal = connected(&config).await.unwrap();
    with_worker(&config, GRACE, contract::suite(Arc::new(temporal))).await;
}

#[tokio::test]
async fn a_worker_works_on_when_its_api_key_rotates() {
    let right = Arc::new(Mutex::new("key-0".to_owned()));
    let file = SecretFile::new("key-0");
    let mut config = config(&doorkeeper(Arc::clone(&right)).await);
    config.api_key = Some(serde_json::from_value(file.value()).unwrap());
    let temporal = connected(&config).await.unwrap();
    let rotation = async {
        for n in 1..=3 {
            let key = format!("key-{n}");
            file.write(&key);
            *right.lock() = key;
            let request = step("echo", Workflow::Echo { delay: Duration::ZERO });
            temporal.start(&request).await.unwrap();
            let ended = temporal.result(&request.id, DEADLINE).await.unwrap();
            assert_eq!(ended.outcome.status, Status::Completed, "after rotation {n}");
        }
    };
    let mut section = section(&config);
    section.0["api_key"] = file.value();
    with_worker_of(section, GRACE, rotation).await;
}

#[tokio::test]
async fn a_workflow_that_the_worker_does_not_know_fails_at_once() {
    let config = config(&address());
    let temporal = connected(&config).await.unwrap();
    let work = async {
        let request = step("unheard of", SECONDS);
        temporal.start(&request).await.unwrap();
        let ended = temporal.result(&request.id, DEADLINE).await.unwrap();
        assert_eq!(ended.outcome.status, Status::Failed);
        assert!(ended.outcome.error.unwrap().contains(r#"has no workflow "unheard of""#));
    };
    with_worker(&config, GRACE, work).await;
}

#[tokio::test]
async fn a_worker_waits_for_its_server() {
    let at = Link::open("127.0.0.1:0").await.address();
    let config = config(&at);
    let direct = Config { task_queue: config.task_queue.clone(), ..Config::at(&address()) };
    let temporal = connected(&direct).await.unwrap();
    let work = async {
        // Long enough for the worker to find that nothing answers.
        sleep(Duration::from_millis(300)).await;
        let mut link = Link::open(&at).await;
        let request = step("echo", Workflow::Echo { delay: Duration::ZERO });
        temporal.start(&request).await.unwrap();
        let ended = link.during(temporal.result(&request.id, DEADLINE)).await.unwrap();
        assert_eq!(ended.outcome.status, Status::Completed);
    };
    with_worker(&config, GRACE, work).await;
}

#[tokio::test]
async fn a_stopping_worker_finishes_the_step_it_holds() {
    let config = config(&address());
    let temporal = connected(&config).await.unwrap();
    let request = step("seconds", SECONDS);
    with_worker(&config, GRACE, begun(&temporal, &request)).await;
    let pending = pending(&temporal, &request).await;
    assert!(pending.is_empty(), "{pending:?} was not reported");
    let work = async { temporal.result(&request.id, DEADLINE).await.unwrap() };
    let ended = with_worker(&config, GRACE, work).await;
    assert_eq!(ended.outcome.status, Status::Completed);
}

#[tokio::test]
async fn a_step_that_takes_longer_is_given_to_another_worker() {
    let config = config(&address());
    let temporal = connected(&config).await.unwrap();
    let request = step("seconds", SECONDS);
    let begin = Instant::now();
    with_worker(&config, Duration::from_secs(2), begun(&temporal, &request)).await;
    assert!(begin.elapsed() < Duration::from_secs(5), "the worker waited for the step");
    let work = async { temporal.result(&request.id, DEADLINE).await.unwrap() };
    let ended = with_worker(&config, GRACE, work).await;
    assert_eq!(ended.outcome.result, Some(json!("input").into()));
}

async fn pending(temporal: &Temporal, start: &StartRequest) -> Vec<PendingActivityInfo> {
    let message = DescribeWorkflowExecutionRequest {
        namespace: "default".to_owned(),
        execution: Some(temporal.newest_run(&start.id)),
    };
    let answer = temporal
        .ask(message, async |mut rpc, request| rpc.describe_workflow_execution(request).await)
        .await;
    answer.unwrap().into_inner().pending_activities
}

/// Starts an execution, and returns when a worker has begun its step. Waiting until the server has
/// dispatched it would not suffice, because a worker that stops at that moment never receives it.
async fn begun(temporal: &Temporal, start: &StartRequest) {
    temporal.start(start).await.unwrap();
    let begun = |step: &PendingActivityInfo| step.last_heartbeat_time.is_some();
    while !pending(temporal, start).await.iter().any(begun) {
        sleep(Duration::from_millis(50)).await;
    }
}

/// Counts signals, and continues as a new run on request.
#[workflow]
#[derive(Default)]
struct Counter {
    total: i64,
    next: Option<&'static str>,
}

#[workflow_methods]
impl Counter {
    #[run]
    async fn run(context: &mut WorkflowContext<Self>, begin: i64) -> WorkflowResult<i64> {
        context.state_mut(|counter| counter.total += begin);
        context.wait_condition(|counter| counter.next.is_some()).await?;
        let total = context.state(|counter| counter.total);
        if context.state(|counter| counter.next) == Some("continue") {
            context.continue_as_new(total, ContinueAsNewOptions::default())?;
        }
        Ok(total)
    }

    #[signal]
    fn add(&mut self, _: &mut SyncWorkflowContext<Self>, value: i64) {
        self.total += value;
    }

    #[signal]
    fn again(&mut self, _: &mut SyncWorkflowContext<Self>) {
        self.next = Some("continue");
    }

    #[signal]
    fn finish(&mut self, _: &mut SyncWorkflowContext<Self>) {
        self.next = Some("finish");
    }

    #[query]
    fn total(&self, _: &WorkflowContextView) -> i64 {
        self.total
    }
}

/// Runs a worker for [`Counter`] during `work`.
async fn with_counter(temporal: &Temporal, work: impl Future<Output = ()>) {
    let runtime = Runtime::from_current_tokio(RuntimeOptions::default()).unwrap();
    let options = ClientOptions::new("default").build();
    let client = Client::new(temporal.connection.clone(), options).unwrap();
    let options = WorkerOptions::new(&temporal.config.task_queue)
        .register_workflow::<Counter>()
        .unwrap()
        .build();
    let mut worker = Worker::new(&runtime, client, options).unwrap();
    let shutdown = worker.shutdown_handle();
    let work = async {
        work.await;
        shutdown();
    };
    let (ended, ()) = tokio::join!(worker.run(), work);
    ended.unwrap();
}

fn counter() -> StartRequest {
    let workflow_type = "Counter".to_owned();
    request_of(Workflow::Temporal { workflow_type, task_queue: None }, json!(1))
}

#[tokio::test]
async fn signals_and_queries_reach_a_workflow_over_its_runs() {
    let temporal = connected(&config(&address())).await.unwrap();
    let work = async {
        let request = counter();
        let id = &request.id;
        temporal.start(&request).await.unwrap();
        temporal.signal(id, "add", &json!(41).into()).await.unwrap();
        assert_eq!(temporal.query(id, "total", &Json::null()).await.unwrap(), json!(42).into());
        let unknown = temporal.query(id, "sum", &Json::null()).await.unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::InvalidInput);

        let continued = async {
            sleep(Duration::from_millis(100)).await;
            temporal.signal(id, "again", &Json::null()).await.unwrap();
        };
        let (waited, ()) = tokio::join!(temporal.result(id, Duration::from_secs(1)), continued);
        assert_eq!(waited.unwrap().outcome.status, Status::Running);
        temporal.start(&request).await.unwrap();
        let list = contract::list_ended(&temporal, time::now()).await;
        assert!(list.iter().all(|ended| ended.id != *id));

        temporal.signal(id, "finish", &Json::null()).await.unwrap();
        let ended = temporal.result(id, DEADLINE).await.unwrap();
        assert_eq!(ended.outcome.result, Some(json!(42).into()));
        assert_eq!(temporal.query(id, "total", &Json::null()).await.unwrap(), json!(42).into());
    };
    with_counter(&temporal, work).await;
}

#[tokio::test]
async fn a_run_that_was_reset_is_still_ours() {
    let temporal = connected(&config(&address())).await.unwrap();
    let begin = time::now();
    let work = async {
        let request = counter();
        temporal.start(&request).await.unwrap();
        assert_eq!(
            temporal.query(&request.id, "total", &Json::null()).await.unwrap(),
            json!(1).into()
        );
        let message = ResetWorkflowExecutionRequest {
            namespace: "default".to_owned(),
            workflow_execution: Some(temporal.newest_run(&request.id)),
            workflow_task_finish_event_id: 4,
            request_id: ids::new_id(),
            ..Default::default()
        };
        temporal
            .ask(message, async |mut rpc, request| rpc.reset_workflow_execution(request).await)
            .await
            .unwrap();
        // The reset terminated the old run, but not the execution.
        let now = temporal.describe(&request.id).await.unwrap();
        assert_eq!(now.outcome.status, Status::Running);
        temporal.start(&request).await.unwrap();
        let stranger = StartRequest { request_id: ids::new_id(), ..request.clone() };
        let taken = temporal.start(&stranger).await.unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
        temporal.signal(&request.id, "finish", &Json::null()).await.unwrap();
        let ended = temporal.result(&request.id, DEADLINE).await.unwrap();
        assert_eq!(ended.outcome.status, Status::Completed);
        let until = Instant::now() + DEADLINE;
        loop {
            let mut list = contract::list_ended(&temporal, begin).await;
            list.retain(|end| end.id == request.id);
            // Both runs are listed, and both say how the execution ended.
            if list.len() == 2 {
                let outcomes = temporal.outcomes(&list).await.unwrap();
                for described in outcomes {
                    assert_eq!(described.outcome, ended.outcome);
                }
                return;
            }
            assert!(Instant::now() < until, "the execution is not listed");
            sleep(Duration::from_secs(1)).await;
        }
    };
    with_counter(&temporal, work).await;
}
