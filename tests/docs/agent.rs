//! Stands in for the Python worker of `docs/executions.md`, which needs a package that the tests do
//! not install: the same workflow under the same names.

use std::thread::{self, JoinHandle};

use serde_json::{Value, json};
use temporalio_client::{Client, ClientOptions, Connection, ConnectionOptions, Url};
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{
    Runtime, Worker, WorkerOptions, WorkflowContext, WorkflowResult, runtime::RuntimeOptions,
};
use tokio::sync::oneshot;

#[workflow]
#[derive(Default)]
struct AgentExecutionWorkflow;

#[workflow_methods]
impl AgentExecutionWorkflow {
    #[run]
    async fn run(_: &mut WorkflowContext<Self>, request: Value) -> WorkflowResult<Value> {
        let name = request["name"].as_str().unwrap_or_default();
        Ok(json!({"answer": format!("hello {name}")}))
    }
}

/// A worker in its own thread, which runs until it is dropped.
pub(crate) struct Agent {
    ended: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn start(address: &str, namespace: &str) -> Self {
        let (ended, end) = oneshot::channel();
        let (address, namespace) = (format!("http://{address}"), namespace.to_owned());
        let thread = thread::spawn(move || {
            let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let tokio = tokio::runtime::Runtime::new().unwrap();
            tokio.block_on(poll(&address, &namespace, end));
        });
        Self { ended: Some(ended), thread: Some(thread) }
    }
}

async fn poll(address: &str, namespace: &str, end: oneshot::Receiver<()>) {
    let options = ConnectionOptions::new(Url::parse(address).unwrap()).build();
    // A new namespace takes a moment to become available.
    let connection = Connection::connect(options).await.unwrap();
    let client = Client::new(connection, ClientOptions::new(namespace).build()).unwrap();
    let runtime = Runtime::from_current_tokio(RuntimeOptions::default()).unwrap();
    let options = WorkerOptions::new("agent-tasks")
        .register_workflow::<AgentExecutionWorkflow>()
        .unwrap()
        .build();
    let mut worker = Worker::new(&runtime, client, options).unwrap();
    let shutdown = worker.shutdown_handle();
    let until = async {
        let _dropped = end.await.is_err();
        shutdown();
    };
    let (ended, ()) = tokio::join!(worker.run(), until);
    ended.unwrap();
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.ended.take());
        if let Some(thread) = self.thread.take() {
            let _failed = thread.join().is_err();
        }
    }
}
