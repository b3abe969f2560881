//! Calls that no task of the simulation makes.

use std::time::Duration;

use async_trait::async_trait;

use super::SimulatedDatabase;
use crate::{
    backends::database::*,
    error::{Error, ErrorKind},
    model::{executions::*, time::Timestamp},
};

pub(super) fn unused<T>() -> Result<T, Error> {
    Err(Error::new(ErrorKind::Unsupported, "the simulation has no such call"))
}

#[async_trait]
impl DeadLetters for SimulatedDatabase {
    async fn dead_letters(&self, _: Option<i64>, _: i64) -> Result<Vec<DeadLetter>, Error> {
        unused()
    }

    async fn redrive(&self, _: i64) -> Result<bool, Error> {
        unused()
    }

    async fn discard(&self, _: i64) -> Result<bool, Error> {
        unused()
    }

    async fn rejected_executions(
        &self,
        _: Option<&str>,
        _: i64,
    ) -> Result<Vec<RejectedExecution>, Error> {
        unused()
    }

    async fn redrive_execution(&self, _: &str, _: i32, _: &NewEvent) -> Result<bool, Error> {
        unused()
    }

    async fn discard_execution(&self, _: &str) -> Result<bool, Error> {
        unused()
    }
}

#[async_trait]
impl Transfer for SimulatedDatabase {
    async fn unfinished(&self) -> Result<Unfinished, Error> {
        unused()
    }

    async fn open_elsewhere(&self, _: &str) -> Result<i64, Error> {
        unused()
    }

    async fn next_parcel(&self, _: i64) -> Result<Option<Parcel>, Error> {
        unused()
    }

    async fn take_in(&self, _: &Parcel) -> Result<(), Error> {
        unused()
    }

    async fn forget(&self, _: &Parcel) -> Result<(), Error> {
        unused()
    }
}

#[async_trait]
impl RunStore for SimulatedDatabase {
    async fn insert_run(&self, _: &StartRequest) -> Result<bool, Error> {
        unused()
    }

    async fn run(&self, _: &str) -> Result<Option<Run>, Error> {
        unused()
    }

    async fn runs(&self, _: &[String]) -> Result<Vec<Run>, Error> {
        unused()
    }

    async fn ended_runs(
        &self,
        _: Timestamp,
        _: Option<(Timestamp, &str)>,
        _: i64,
    ) -> Result<Vec<ListedEnd>, Error> {
        unused()
    }

    async fn running_runs(&self, _: Option<&str>, _: i64) -> Result<Vec<String>, Error> {
        unused()
    }

    async fn claim_runs(&self, _: &str, _: Duration, _: i64) -> Result<Vec<ClaimedRun>, Error> {
        unused()
    }

    async fn renew_runs(
        &self,
        _: &str,
        _: &[String],
        _: Duration,
    ) -> Result<Vec<(String, bool)>, Error> {
        unused()
    }

    async fn note_try(&self, _: &str, _: i64, _: u32, _: Duration) -> Result<bool, Error> {
        unused()
    }

    async fn finish_run(&self, _: &str, _: i64, _: &Outcome) -> Result<bool, Error> {
        unused()
    }

    async fn cancel_run(&self, _: &str) -> Result<bool, Error> {
        unused()
    }

    async fn terminate_run(&self, _: &str, _: &str) -> Result<bool, Error> {
        unused()
    }

    async fn release_runs(&self, _: &str) -> Result<(), Error> {
        unused()
    }

    async fn release_runs_of_others(&self, _: &str) -> Result<(), Error> {
        unused()
    }
}
