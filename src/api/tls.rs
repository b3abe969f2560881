//! The certificate of `[server.tls]`.

use std::{fmt, sync::Arc};

use rustls::{ServerConfig, crypto::aws_lc_rs};
use tokio_rustls::TlsAcceptor;

use crate::{config::ServerTls, tls};

/// A file of `[server.tls]` that cannot be used; the text names the key, the file and the reason.
#[derive(Debug, thiserror::Error)]
#[error("server.tls.{key}: {reason}")]
pub struct TlsFileError {
    key: &'static str,
    reason: String,
}

impl TlsFileError {
    fn new(key: &'static str, reason: impl fmt::Display) -> Self {
        Self { key, reason: reason.to_string() }
    }
}

/// Returns the acceptor that wraps a TCP connection in TLS; `None` when TLS is off.
pub(super) fn acceptor(config: &ServerTls) -> Result<Option<TlsAcceptor>, TlsFileError> {
    let (Some(cert_file), Some(key_file)) = (&config.cert_file, &config.key_file) else {
        return Ok(None);
    };
    let chain =
        tls::certificates(cert_file).map_err(|error| TlsFileError::new("cert_file", error))?;
    let key = tls::private_key(key_file).map_err(|error| TlsFileError::new("key_file", error))?;
    let unusable = |error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let file = key_file.display();
            TlsFileError::new("key_file", format!("{file} is not the key of cert_file"))
        }
        rustls::Error::InvalidCertificate(reason) => {
            let file = cert_file.display();
            TlsFileError::new("cert_file", format!("{file} cannot be used: {reason}"))
        }
        other => TlsFileError::new("key_file", format!("{}: {other}", key_file.display())),
    };
    let mut server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}
