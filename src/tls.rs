//! The only TLS implementation of the program, and the only code that reads its files.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

/// Makes aws-lc-rs the default provider of the process, which libraries look up. May be called any
/// number of times.
pub fn install_provider() {
    // An error means that it is already installed.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default().is_ok();
}

/// Returns the certificates in a PEM file; at least one.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let unusable = |cause| FileError::new(file, "certificate", cause);
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<_, _>>);
    let found: Vec<_> = read.map_err(unusable)?;
    // An empty store of authorities would refuse every peer without mentioning the file.
    if found.is_empty() { Err(unusable(pem::Error::NoItemsFound)) } else { Ok(found) }
}

/// Returns the private key in a PEM file.
///
/// # Errors
/// When the file cannot be read or holds none.
pub fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_file(file).map_err(|cause| FileError::new(file, "private key", cause))
}

/// The reason that a PEM file cannot be used. The text names the file and quotes nothing from it.
#[derive(Debug)]
pub struct FileError {
    file: PathBuf,
    what: &'static str,
    unreadable: Option<io::Error>,
}

impl FileError {
    fn new(file: &Path, what: &'static str, cause: pem::Error) -> Self {
        let unreadable = match cause {
            pem::Error::Io(error) => Some(error),
            _ => None,
        };
        Self { file: file.to_owned(), what, unreadable }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, what, unreadable } = self;
        match unreadable {
            Some(error) => write!(f, "{} cannot be read: {error}", file.display()),
            None => write!(f, "{} holds no {what} in PEM form", file.display()),
        }
    }
}

impl std::error::Error for FileError {}
