//! An execution service in memory.

use std::time::Duration;

use async_trait::async_trait;
use rand::Rng;
use tokio::time::Instant;

use super::{
    link::Link,
    world::{REFUSED, RunRow, Truth, World},
};
use crate::{
    backends::execution_service::{Description, ExecutionService, Page, PageToken, Started},
    connection::Backend,
    error::{Error, ErrorKind},
    model::{
        executions::{ListedEnd, Outcome, StartRequest, Status},
        json::Json,
        time::Timestamp,
    },
};

/// One replica's way to the execution service.
#[derive(Debug)]
pub(super) struct SimulatedService(pub(super) Link);

#[async_trait]
impl Backend for SimulatedService {
    async fn probe(&self) -> Result<(), Error> {
        self.0.probe().await
    }

    async fn close(&self) {}
}

impl Truth {
    /// Ends the runs whose time has come.
    fn let_runs_end(&mut self, world: &World) {
        let now = Instant::now();
        for run in self.runs.values_mut() {
            if run.outcome.is_none() && run.ends <= now {
                let finished_at = Some(world.now());
                run.outcome = Some(Outcome {
                    status: Status::Completed,
                    result: Some(Json::null()),
                    error: None,
                    started_at: Some(run.started_at),
                    finished_at,
                });
            }
        }
    }

    fn describe(&self, id: &str) -> Result<Description, Error> {
        let run = self.runs.get(id);
        let run = run.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no such run"))?;
        let outcome = run.outcome.clone().unwrap_or_else(|| Outcome::running(run.started_at));
        Ok(Description { id: id.to_owned(), outcome, ran_for: None })
    }
}

impl SimulatedService {
    async fn ask<T>(
        &self,
        name: &str,
        effect: impl FnOnce(&mut Truth, &World) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        let effect = |truth: &mut Truth, world: &World| {
            if truth.faults.throttled.is_some_and(|until| Instant::now() < until) {
                return Err(Error::new(ErrorKind::Throttled, "fewer calls"));
            }
            truth.let_runs_end(world);
            effect(truth, world)
        };
        self.0.call(name, effect).await
    }
}

fn unsupported<T>() -> Result<T, Error> {
    Err(Error::new(ErrorKind::Unsupported, "the simulation has no such call"))
}

#[async_trait]
impl ExecutionService for SimulatedService {
    async fn start(&self, request: &StartRequest) -> Result<Started, Error> {
        let start = |truth: &mut Truth, world: &World| {
            if request.workflow == REFUSED {
                return Err(Error::new(ErrorKind::InvalidInput, "the service refuses it"));
            }
            if let Some(run) = truth.runs.get(&request.id) {
                return if run.request_id == request.request_id {
                    Ok(Started::Started)
                } else {
                    Err(Error::new(ErrorKind::AlreadyExists, "another has the id"))
                };
            }
            let millis = world.random(|random| random.random_range(10..20_000));
            let run = RunRow {
                request_id: request.request_id.clone(),
                started_at: world.now(),
                ends: Instant::now() + Duration::from_millis(millis),
                outcome: None,
            };
            truth.runs.insert(request.id.clone(), run);
            Ok(Started::Started)
        };
        self.ask("start", start).await
    }

    async fn describe(&self, id: &str) -> Result<Description, Error> {
        self.ask("describe", |truth, _| truth.describe(id)).await
    }

    async fn ended_since(
        &self,
        since: Timestamp,
        _page: Option<&PageToken>,
    ) -> Result<Page<ListedEnd>, Error> {
        let list = |truth: &mut Truth, _: &World| {
            let ended = truth.runs.iter().filter_map(|(id, run)| {
                let outcome = run.outcome.as_ref()?;
                let ended_at = outcome.finished_at.filter(|at| *at >= since)?;
                Some(ListedEnd {
                    id: id.clone(),
                    run: run.request_id.clone(),
                    status: outcome.status,
                    started_at: outcome.started_at,
                    is_first_run: true,
                    ended_at,
                })
            });
            Ok(Page { items: ended.collect(), next: None })
        };
        self.ask("ended_since", list).await
    }

    async fn running(&self, _page: Option<&PageToken>) -> Result<Page<String>, Error> {
        let list = |truth: &mut Truth, _: &World| {
            let running = truth.runs.iter().filter(|(_, run)| run.outcome.is_none());
            Ok(Page { items: running.map(|(id, _)| id.clone()).collect(), next: None })
        };
        self.ask("running", list).await
    }

    async fn outcomes(&self, ended: &[ListedEnd]) -> Result<Vec<Description>, Error> {
        let read = |truth: &mut Truth, _: &World| {
            ended.iter().map(|end| truth.describe(&end.id)).collect()
        };
        self.ask("outcomes", read).await
    }

    async fn until_ended(&self, _: &str, _: Duration) -> Result<(), Error> {
        std::future::pending().await
    }

    async fn signal(&self, _: &str, _: &str, _: &Json) -> Result<(), Error> {
        unsupported()
    }

    async fn query(&self, _: &str, _: &str, _: &Json) -> Result<Json, Error> {
        unsupported()
    }

    async fn cancel(&self, id: &str) -> Result<(), Error> {
        self.end(id, Status::Cancelled).await
    }

    async fn terminate(&self, id: &str, _reason: &str) -> Result<(), Error> {
        self.end(id, Status::Terminated).await
    }
}

impl SimulatedService {
    async fn end(&self, id: &str, status: Status) -> Result<(), Error> {
        let end = |truth: &mut Truth, world: &World| {
            let run = truth.runs.get_mut(id).filter(|run| run.outcome.is_none());
            let run = run.ok_or_else(|| Error::new(ErrorKind::NotFound, "it is not running"))?;
            let outcome = Outcome::ended(status, "asked to", world.now());
            run.outcome = Some(Outcome { started_at: Some(run.started_at), ..outcome });
            Ok(())
        };
        self.ask("end", end).await
    }
}
