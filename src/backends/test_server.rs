//! The real servers that tests talk to, and what only unit tests put before them.

#[expect(dead_code, unused_imports, reason = "the integration tests use the rest")]
#[path = "../../tests/support/servers/mod.rs"]
mod servers;

#[cfg(feature = "postgres")]
pub(crate) use self::servers::Database as PostgresDatabase;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) use self::servers::Link;
#[cfg(feature = "redis")]
pub(crate) use self::servers::{Redis, free_port};
#[cfg(any(feature = "postgres", feature = "redis", feature = "temporal"))]
pub(crate) use self::servers::{certificate, small_pool, variable};

/// The text, such as a URL, with all servers in it as far away as the tests want them.
#[cfg(any(feature = "postgres", feature = "redis", feature = "temporal"))]
pub(crate) fn far(text: &str) -> String {
    servers::away(text, servers::rtt())
}

#[cfg(any(feature = "postgres", feature = "redis"))]
impl Link {
    /// Never carries anything again for the connections of now, and everything for those to come.
    pub(crate) fn forget_connections(&self) {
        self.set(servers::Passing::Stalled);
        self.set(servers::Passing::Open);
    }
}

#[cfg(feature = "postgres")]
impl PostgresDatabase {
    /// Makes a role of that password the owner; gives the URL to log in with, less the password.
    pub(crate) async fn give_to(&self, role: &str, password: &str) -> String {
        self.execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD '{password}' IN ROLE by_password"
        ))
        .await;
        self.execute(&format!("ALTER DATABASE {} OWNER TO {role}", self.name())).await;
        let (_, address) = self.url.split_once('@').expect("the URL names a user");
        format!("postgres://{role}@{address}")
    }

    /// Drops the database and the role that it was given to.
    pub(crate) async fn drop_with(self, role: &str) {
        self.execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name())).await;
        self.execute(&format!("DROP ROLE {role}")).await;
    }
}

/// TLS before a server that has none; ends when dropped.
#[cfg(any(feature = "redis", feature = "temporal"))]
pub(crate) struct TlsFront {
    /// `host:port` to connect to.
    pub(crate) address: String,
    _carrying: tokio::task::JoinSet<()>,
}

#[cfg(any(feature = "redis", feature = "temporal"))]
impl TlsFront {
    /// Carries to `server`, a `host:port`, showing the certificate of that name.
    pub(crate) async fn start(server: &str, name: &str) -> Self {
        let config = front::builder().with_no_client_auth();
        Self::carry(server, front::with_certificate(config, name)).await
    }

    /// The same for clients with a certificate of `ca.pem` only.
    #[cfg(feature = "temporal")]
    pub(crate) async fn wanting_certificates(server: &str, name: &str) -> Self {
        let config = front::builder().with_client_cert_verifier(front::client_verifier());
        Self::carry(server, front::with_certificate(config, name)).await
    }

    async fn carry(server: &str, config: rustls::ServerConfig) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let mut carrying = tokio::task::JoinSet::new();
        carrying.spawn(front::accept(listener, server.to_owned(), config));
        Self { address, _carrying: carrying }
    }
}

#[cfg(any(feature = "redis", feature = "temporal"))]
mod front {
    use std::sync::Arc;

    use rustls::{ConfigBuilder, ServerConfig, WantsVerifier, crypto::aws_lc_rs};
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    use tokio::{
        io::copy_bidirectional,
        net::{TcpListener, TcpStream},
        task::JoinSet,
    };
    use tokio_rustls::TlsAcceptor;

    use super::certificate;

    pub(super) fn builder() -> ConfigBuilder<ServerConfig, WantsVerifier> {
        ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider fits")
    }

    pub(super) fn with_certificate(
        builder: ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
        name: &str,
    ) -> ServerConfig {
        let key = PrivateKeyDer::from_pem_file(certificate(&format!("{name}.key")));
        let mut config = builder
            .with_single_cert(chain(&format!("{name}.pem")), key.expect("a key"))
            .expect("a certificate and its key");
        // gRPC insists on it.
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    #[cfg(feature = "temporal")]
    pub(super) fn client_verifier() -> Arc<dyn rustls::server::danger::ClientCertVerifier> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(chain("ca.pem"));
        let provider = Arc::new(aws_lc_rs::default_provider());
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .expect("an authority")
    }

    fn chain(name: &str) -> Vec<CertificateDer<'static>> {
        let read = CertificateDer::pem_file_iter(certificate(name));
        read.expect("a file").collect::<Result<_, _>>().expect("certificates")
    }

    pub(super) async fn accept(listener: TcpListener, server: String, config: ServerConfig) {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut connections = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), server.clone());
            connections.spawn(async move {
                let mut near = acceptor.accept(near).await?;
                let mut far = TcpStream::connect(server).await?;
                copy_bidirectional(&mut near, &mut far).await
            });
        }
    }
}

/// A secret in a file, as the configuration reads it, that a test can change.
#[cfg(any(feature = "postgres", feature = "redis", feature = "temporal"))]
pub(crate) struct SecretFile {
    folder: tempfile::TempDir,
}

#[cfg(any(feature = "postgres", feature = "redis", feature = "temporal"))]
impl SecretFile {
    pub(crate) fn new(secret: &str) -> Self {
        let file = Self { folder: tempfile::tempdir().expect("a folder can be made") };
        file.write(secret);
        file
    }

    /// Puts another file in the place of the one there, as secret stores do.
    pub(crate) fn write(&self, secret: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, format!("{secret}\n")).expect("the file can be written");
        std::fs::rename(new, self.path()).expect("the file can be replaced");
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("secret")
    }

    /// What a backend's table holds for `x_file`.
    pub(crate) fn value(&self) -> serde_json::Value {
        let value = std::fs::read_to_string(self.path()).expect("the file can be read");
        serde_json::json!({"value": value.trim_end(), "file": self.path()})
    }
}
