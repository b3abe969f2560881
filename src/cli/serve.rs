//! `serve` and `worker`.

use crate::{app::App, config::Loaded, lifecycle::Exit, telemetry, tls};

/// Serves the API until asked to stop.
pub(super) fn serve(app: App, loaded: Loaded) -> anyhow::Result<Exit> {
    run(loaded, |loaded| app.serve(loaded))
}

/// Runs the configured workflows on Temporal until asked to stop.
#[cfg(feature = "worker")]
pub(super) fn worker(app: App, loaded: Loaded) -> anyhow::Result<Exit> {
    run(loaded, |loaded| app.work(loaded))
}

fn run<F, Fut>(loaded: Loaded, body: F) -> anyhow::Result<Exit>
where
    F: FnOnce(Loaded) -> Fut,
    Fut: Future<Output = anyhow::Result<Exit>>,
{
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let entered = runtime.enter();
    let telemetry = match telemetry::init(&loaded.config.telemetry) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("agentarea-api: {error:#}");
            return Ok(Exit::BadConfig);
        }
    };
    let exit = runtime.block_on(body(loaded));
    // Logs are flushed, and the last spans sent, while there is a runtime to do it.
    drop(telemetry);
    drop(entered);
    // What did not stop in time must not hold up the end.
    runtime.shutdown_background();
    exit
}
