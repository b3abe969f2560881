//! One TLS implementation for the whole program.

/// Makes aws-lc-rs what libraries find when they ask for the process's default. May be called any
/// number of times.
pub fn install_provider() {
    // An error says that it is installed already.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default().is_ok();
}
