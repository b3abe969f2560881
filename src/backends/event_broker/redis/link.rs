//! Connections to the server: the shared one, and those for a single caller.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{
    FutureExt,
    future::{BoxFuture, WeakShared},
};
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, RedisError, aio::MultiplexedConnection};

use super::{
    servers::{Access, Servers},
    translate::{leads_nowhere, translate},
};
use crate::{
    backends::{
        login::Login,
        pool::{Checkout, Connect, Pool},
    },
    error::{Error, ErrorKind},
};

/// One multiplexed connection: opened on demand, shared by all callers, replaced when it breaks.
pub(super) struct Line {
    login: Arc<Login<Access>>,
    patience: u32,
    state: Mutex<LineState>,
}

#[derive(Default)]
struct LineState {
    open: Option<Open>,
    /// The current attempt to connect. Only its waiting callers keep it alive, so that no caller
    /// receives the result of an old attempt.
    connecting: Option<WeakShared<Connecting>>,
    closed: bool,
}

type Connecting = BoxFuture<'static, Result<Open, Error>>;

#[derive(Clone)]
struct Open {
    connection: MultiplexedConnection,
    /// The number of consecutive calls that were dropped before their answer arrived.
    unanswered: Arc<AtomicU32>,
}

impl Line {
    pub(super) fn new(login: Arc<Login<Access>>, patience: u32) -> Self {
        Self { login, patience, state: Mutex::default() }
    }

    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        self.call(|mut connection| async move { command.query_async(&mut connection).await }).await
    }

    pub(super) async fn call<T, F, Fut>(&self, command: F) -> Result<T, Error>
    where
        F: FnOnce(MultiplexedConnection) -> Fut,
        Fut: Future<Output = Result<T, RedisError>>,
    {
        let open = self.open().await?;
        let mut pending = Pending { line: self, open: &open, answered: false };
        let result = command(open.connection.clone()).await;
        pending.answered = true;
        drop(pending);
        open.unanswered.store(0, Ordering::Relaxed);
        result.map_err(|error| {
            if leads_nowhere(&error) {
                self.forget(&open);
            }
            translate(&error)
        })
    }

    async fn open(&self) -> Result<Open, Error> {
        let attempt = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(Error::new(ErrorKind::Closed, "the connection is closed"));
            }
            if let Some(open) = &state.open {
                return Ok(open.clone());
            }
            let under_way = state.connecting.as_ref().and_then(WeakShared::upgrade);
            under_way.unwrap_or_else(|| {
                let attempt = self.connect().shared();
                state.connecting = attempt.downgrade();
                attempt
            })
        };
        let result = attempt.clone().await;
        let mut state = self.state.lock();
        let current = state.connecting.as_ref().and_then(WeakShared::upgrade);
        // The first waiting caller to resume stores the connection for all.
        if current.is_some_and(|current| current.ptr_eq(&attempt)) {
            state.connecting = None;
            state.open = result.clone().ok().filter(|_| !state.closed);
        }
        result
    }

    fn connect(&self) -> Connecting {
        let login = Arc::clone(&self.login);
        let attempt = async move {
            let connection = connect(&login).await?;
            Ok(Open { connection, unanswered: Arc::default() })
        };
        attempt.boxed()
    }

    /// Makes the next call reconnect, unless that has happened already. Calls in progress keep the
    /// old connection until they are answered or dropped.
    fn forget(&self, broken: &Open) {
        let mut state = self.state.lock();
        if state.open.as_ref().is_some_and(|o| Arc::ptr_eq(&o.unanswered, &broken.unanswered)) {
            state.open = None;
        }
    }

    /// Makes the next call reconnect. Calls in progress keep their connection.
    pub(super) fn renew(&self) {
        self.state.lock().open = None;
    }

    pub(super) fn close(&self) {
        *self.state.lock() = LineState { closed: true, ..LineState::default() };
    }
}

/// A call that waits for its answer.
struct Pending<'a> {
    line: &'a Line,
    open: &'a Open,
    answered: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.answered
            && self.open.unanswered.fetch_add(1, Ordering::Relaxed) + 1 >= self.line.patience
        {
            self.line.forget(self.open);
        }
    }
}

/// Opens the connections of blocking reads.
pub(super) struct Connector(pub(super) Arc<Login<Access>>);

async fn connect(login: &Login<Access>) -> Result<MultiplexedConnection, Error> {
    login.connect(async |servers: Arc<Servers>| servers.connect().await).await
}

#[async_trait]
impl Connect for Connector {
    type Conn = MultiplexedConnection;

    // A check is cheap compared with a wait, and nothing else shows that the server has hung up.
    const CHECK_BEFORE_USE: bool = true;

    async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        connect(&self.0).await
    }

    fn is_broken(_: &mut MultiplexedConnection) -> bool {
        false
    }

    async fn check(&self, connection: &mut MultiplexedConnection) -> Result<(), Error> {
        self.0.current().check(connection).await
    }
}

/// A pooled connection that is returned only when its answer was read completely.
pub(super) struct Exclusive(Option<Checkout<Connector>>);

impl Exclusive {
    /// Takes a connection for a read that blocks for up to `wait`.
    pub(super) async fn take(pool: &Pool<Connector>, wait: Duration) -> Result<Self, Error> {
        pool.get_for("wait", wait).await.map(|connection| Self(Some(connection)))
    }

    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, Error> {
        let Some(connection) = &mut self.0 else {
            return Err(Error::new(ErrorKind::Internal, "the connection was given back"));
        };
        command.query_async(&mut **connection).await.map_err(|error| translate(&error))
    }

    pub(super) fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.discard();
        }
    }
}
