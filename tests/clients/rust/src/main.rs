//! Checks the health, follows a subject, publishes an event, starts an execution and waits for it.

use agentarea::{
    apis::{configuration::Configuration, events_api, executions_api, health_api},
    models::{CloudEvent, ExecutionStatus, HealthStatus, ShortEvent, StartExecution},
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let base_path = std::env::args().nth(1).context("give the address of the service")?;
    let client = Configuration { base_path, ..Configuration::default() };

    let report = health_api::get_health(&client).await?;
    ensure!(report.status == HealthStatus::Healthy, "{report:?}");
    println!("{} {} is {}", report.service, report.version, report.status);

    let subject = "rust-1";
    let mut stream = events_api::stream_events(&client, None, Some(subject), None).await?;

    let event = ShortEvent {
        r#type: "task.created".to_owned(),
        subject: Some(subject.to_owned()),
        data: Some(Some(json!({"title": "Write the report"}))),
    };
    let published =
        events_api::publish_events(&client, event.clone(), None, Some(subject)).await?;

    let mut text = Vec::new();
    let received: CloudEvent = loop {
        let Some(piece) = stream.chunk().await? else { bail!("the stream ended") };
        text.extend(piece);
        let text = String::from_utf8_lossy(&text);
        if let Some((data, _)) =
            text.split_once("data: ").and_then(|(_, rest)| rest.split_once('\n'))
        {
            break serde_json::from_str(data)?;
        }
    };
    ensure!(Some(&received.id) == published.id.as_ref(), "{received:?} is not {published:?}");
    ensure!(received.data == event.data, "{received:?}");
    println!("received {} {}", received.r#type, received.id);

    let input = json!({"message": "hello"});
    let wanted = StartExecution {
        input: Some(Some(input.clone())),
        ..StartExecution::new("echo".to_owned())
    };
    let started = executions_api::start_execution(&client, wanted, None).await?;
    let execution = executions_api::get_execution(&client, &started.id, Some("20s")).await?;
    ensure!(execution.status == ExecutionStatus::Completed, "{execution:?}");
    ensure!(execution.result == Some(Some(input.clone())), "{execution:?}");
    println!("completed {} with {input}", execution.id);
    Ok(())
}
