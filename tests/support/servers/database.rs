//! A separate database for a test.

use tokio_postgres::{Client, NoTls};

use super::variable;

/// A database on a shared `PostgreSQL` server. Only [`Self::drop`] drops it.
pub(crate) struct Database {
    /// The URL of the database itself.
    pub(crate) url: String,
    server: String,
    name: String,
}

impl Database {
    pub(crate) async fn create() -> Self {
        Self::create_on(variable("TEST_DATABASE_URL")).await
    }

    /// On the server of this URL.
    pub(crate) async fn create_on(server: String) -> Self {
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        execute(&server, &format!("CREATE DATABASE {name}")).await;
        let (base, _database) = server.rsplit_once('/').expect("the URL names a database");
        Self { url: format!("{base}/{name}"), server, name }
    }

    /// `host:port` of the server.
    pub(crate) fn address(&self) -> &str {
        let (_, rest) = self.server.rsplit_once('@').expect("the URL names a user");
        rest.split_once('/').expect("the URL names a database").0
    }

    /// The URL through a link to the server.
    pub(crate) fn url_at(&self, address: &str) -> String {
        self.url.replace(self.address(), address)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The number that a query inside the database returns.
    pub(crate) async fn value(&self, query: &str) -> i64 {
        self.with_client(async |client| {
            client.query_one(query, &[]).await.expect("there is one").get(0)
        })
        .await
    }

    /// Executes statements inside the database.
    pub(crate) async fn within(&self, statements: &str) {
        execute(&self.url, statements).await;
    }

    /// Executes statements as the owner of the server, outside the database.
    pub(crate) async fn execute(&self, statements: &str) {
        execute(&self.server, statements).await;
    }

    /// Runs `work` with a separate connection.
    pub(crate) async fn with_client<T>(&self, work: impl AsyncFnOnce(&Client) -> T) -> T {
        with_client(&self.url, work).await
    }

    pub(crate) async fn drop(self) {
        self.execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
    }
}

async fn execute(url: &str, statements: &str) {
    with_client(url, async |client| {
        client
            .batch_execute(statements)
            .await
            .unwrap_or_else(|error| panic!("{error}: {statements}"));
    })
    .await;
}

async fn with_client<T>(url: &str, work: impl AsyncFnOnce(&Client) -> T) -> T {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.expect("PostgreSQL answers");
    let drive = async {
        let _ended = connection.await.is_ok();
    };
    let run = async {
        let result = work(&client).await;
        drop(client);
        result
    };
    tokio::join!(drive, run).1
}
