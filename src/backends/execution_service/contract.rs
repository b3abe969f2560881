//! The contract of every execution service. Each backend runs this suite, the networked ones
//! against a real server.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Description, ExecutionService, Page, PageToken};
use crate::{
    error::{Error, ErrorKind},
    model::{
        executions::{ListedEnd, StartRequest, Status, StepRetry, Workflow},
        ids,
        json::Json,
        time::{self, Timestamp},
    },
};

/// Long enough for a loaded machine; nothing waits for it to pass.
const DEADLINE: Duration = Duration::from_mins(1);

/// The workflows that the suite executes, for backends whose workers look them up by name.
pub(super) fn workflows() -> BTreeMap<String, Workflow> {
    let retry = StepRetry {
        max_attempts: 1,
        initial_backoff: Duration::from_millis(10),
        max_backoff: Duration::from_millis(10),
        multiplier: 1.0,
    };
    let closed_port = "http://127.0.0.1:1/".to_owned();
    let unreachable = Workflow::Http {
        url: closed_port,
        timeout: Duration::from_secs(5),
        retry,
        max_answer: Workflow::MAX_ANSWER,
    };
    BTreeMap::from([
        ("echo".to_owned(), Workflow::Echo { delay: Duration::ZERO }),
        ("slow".to_owned(), Workflow::Echo { delay: DEADLINE * 10 }),
        ("unreachable".to_owned(), unreachable),
    ])
}

/// Runs the suite on a service whose list shows nobody else's executions.
pub(super) async fn suite(service: Arc<dyn ExecutionService>) {
    let service = &*service;
    let begin = time::now();
    service.probe().await.expect("the probe of a working service is good");
    an_unknown_id_is_not_found(service).await;
    let mut ended = vec![
        an_echo_gives_its_input_back(service).await,
        a_repeated_hand_over_starts_one_run(service).await,
        a_running_execution_can_be_cancelled(service).await,
        a_running_execution_can_be_terminated(service).await,
        an_execution_ends_when_its_time_is_up(service).await,
        a_failing_step_fails_its_execution(service).await,
    ];
    ended.extend(several_run_at_a_time(service).await);
    the_list_shows_what_ended(service, begin, &ended).await;
    the_list_shows_what_is_running(service).await;
    service.close().await;
}

fn request(workflow: &str, input: Value) -> StartRequest {
    StartRequest {
        id: ids::new_id(),
        request_id: ids::new_id(),
        workflow: workflow.to_owned(),
        definition: workflows().remove(workflow).expect("the suite has the workflow"),
        input: input.into(),
        timeout: None,
        traceparent: None,
        first_tried: None,
    }
}

async fn start(service: &dyn ExecutionService, request: &StartRequest) {
    service.start(request).await.expect("starting works");
}

async fn wait(service: &dyn ExecutionService, id: &str) -> Description {
    let description = service.result(id, DEADLINE).await.expect("waiting works");
    assert_eq!(description.id, id);
    assert!(description.outcome.status.is_terminal(), "{description:?} has not ended in time");
    assert!(description.outcome.finished_at.is_some());
    description
}

async fn an_unknown_id_is_not_found(service: &dyn ExecutionService) {
    let id = &ids::new_id();
    let not_found = |error: crate::error::Error| assert_eq!(error.kind(), ErrorKind::NotFound);
    not_found(service.describe(id).await.unwrap_err());
    not_found(service.result(id, DEADLINE).await.unwrap_err());
    not_found(service.cancel(id).await.unwrap_err());
    not_found(service.terminate(id, "test").await.unwrap_err());
    // Not every backend has signals and queries.
    let answers = [
        service.signal(id, "wake", &Json::null()).await.unwrap_err(),
        service.query(id, "state", &Json::null()).await.unwrap_err(),
    ];
    for error in answers {
        assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported), "{error:?}");
    }
}

async fn an_echo_gives_its_input_back(service: &dyn ExecutionService) -> Description {
    let input = json!({ "text": "grüße", "list": [1, 2.5, null, true], "empty": {} });
    let request = request("echo", input.clone());
    start(service, &request).await;
    let ended = wait(service, &request.id).await;
    assert_eq!(ended.outcome.status, Status::Completed);
    assert_eq!(ended.outcome.result, Some(input.into()));
    assert_eq!(ended.outcome.error, None);
    assert_eq!(service.describe(&request.id).await.expect("describing works"), ended);
    ended
}

async fn a_repeated_hand_over_starts_one_run(service: &dyn ExecutionService) -> Description {
    let first = request("echo", json!(1));
    start(service, &first).await;
    start(service, &first).await;
    let stranger =
        StartRequest { request_id: ids::new_id(), input: json!(2).into(), ..first.clone() };
    let taken = service.start(&stranger).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    let ended = wait(service, &first.id).await;
    assert_eq!(ended.outcome.result, Some(json!(1).into()));
    // The same once it has ended, because the answer to the hand-over can be lost for long.
    start(service, &first).await;
    let taken = service.start(&stranger).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    assert_eq!(service.describe(&first.id).await.expect("describing works"), ended);
    ended
}

async fn a_running_execution_can_be_cancelled(service: &dyn ExecutionService) -> Description {
    let request = request("slow", json!("cancel me"));
    start(service, &request).await;
    let begin = Instant::now();
    let waited = service.result(&request.id, Duration::from_millis(500)).await;
    assert_eq!(waited.expect("waiting works").outcome.status, Status::Running);
    assert!(begin.elapsed() >= Duration::from_millis(500));
    assert!(begin.elapsed() < DEADLINE);
    service.cancel(&request.id).await.expect("cancelling works");
    // Again before it has ended, or just after.
    if let Err(error) = service.cancel(&request.id).await {
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    let ended = wait(service, &request.id).await;
    assert_eq!(ended.outcome.status, Status::Cancelled);
    assert_eq!(ended.outcome.result, None);
    let again = service.cancel(&request.id).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::NotFound);
    ended
}

async fn a_running_execution_can_be_terminated(service: &dyn ExecutionService) -> Description {
    let request = request("slow", json!("end me"));
    start(service, &request).await;
    service.terminate(&request.id, "no longer wanted").await.expect("terminating works");
    let ended = wait(service, &request.id).await;
    assert_eq!(ended.outcome.status, Status::Terminated);
    assert_eq!(ended.outcome.error.as_deref(), Some("no longer wanted"));
    let again = service.terminate(&request.id, "again").await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::NotFound);
    ended
}

async fn an_execution_ends_when_its_time_is_up(service: &dyn ExecutionService) -> Description {
    let timeout = Some(Duration::from_secs(1));
    let request = StartRequest { timeout, ..request("slow", json!("take too long")) };
    start(service, &request).await;
    let ended = wait(service, &request.id).await;
    assert_eq!(ended.outcome.status, Status::TimedOut);
    ended
}

async fn a_failing_step_fails_its_execution(service: &dyn ExecutionService) -> Description {
    let request = request("unreachable", json!({}));
    start(service, &request).await;
    let ended = wait(service, &request.id).await;
    assert_eq!(ended.outcome.status, Status::Failed);
    assert_eq!(ended.outcome.error.as_deref(), Some("the service cannot be reached"));
    ended
}

async fn several_run_at_a_time(service: &dyn ExecutionService) -> Vec<Description> {
    let requests: Vec<_> = (0..10).map(|n| request("echo", json!(n))).collect();
    futures_util::future::join_all(requests.iter().map(|request| start(service, request))).await;
    let waits = requests.iter().map(|request| wait(service, &request.id));
    let ended = futures_util::future::join_all(waits).await;
    for (request, ended) in requests.iter().zip(&ended) {
        assert_eq!(ended.outcome.result.as_ref(), Some(&request.input));
    }
    ended
}

async fn the_list_shows_what_ended(
    service: &dyn ExecutionService,
    begin: Timestamp,
    ended: &[Description],
) {
    let until = Instant::now() + DEADLINE;
    loop {
        let list = list_ended(service, begin).await;
        assert!(list.iter().all(|end| end.ended_at >= begin));
        let listed = |one: &Description| list.iter().find(|end| end.id == one.id);
        let listed: Option<Vec<ListedEnd>> = ended.iter().map(|one| listed(one).cloned()).collect();
        if let Some(listed) = listed {
            let outcomes = service.outcomes(&listed).await.expect("they are readable");
            assert_eq!(outcomes.len(), ended.len());
            assert!(ended.iter().all(|one| outcomes.contains(one)), "{outcomes:#?} {ended:#?}");
            return;
        }
        assert!(Instant::now() < until, "the list {list:#?} lacks some of {ended:#?}");
        // The backend's view may lag behind.
        sleep(Duration::from_secs(1)).await;
    }
}

async fn the_list_shows_what_is_running(service: &dyn ExecutionService) {
    let requests: Vec<_> = (0..10).map(|_| request("slow", json!(1))).collect();
    for request in &requests {
        start(service, request).await;
    }
    let until = Instant::now() + DEADLINE;
    loop {
        let list = list_all(async |page| service.running(page).await).await;
        if requests.iter().all(|request| list.contains(&request.id)) {
            break;
        }
        assert!(Instant::now() < until, "the list {list:?} lacks some of {requests:?}");
        sleep(Duration::from_secs(1)).await;
    }
    for request in &requests {
        service.terminate(&request.id, "seen").await.expect("terminating works");
    }
}

/// What ended at or after `since`.
pub(super) async fn list_ended(service: &dyn ExecutionService, since: Timestamp) -> Vec<ListedEnd> {
    list_all(async |page| service.ended_since(since, page).await).await
}

/// All pages of a list.
async fn list_all<T>(page: impl AsyncFn(Option<&PageToken>) -> Result<Page<T>, Error>) -> Vec<T> {
    let (mut all, mut next) = (Vec::new(), None);
    loop {
        match page(next.as_ref()).await {
            // A backend may allow few looks at its lists.
            Err(error) if error.kind() == ErrorKind::Throttled => {
                sleep(Duration::from_secs(1)).await;
            }
            page => {
                let page = page.expect("listing works");
                all.extend(page.items);
                next = page.next;
                if next.is_none() {
                    return all;
                }
            }
        }
    }
}
