//! `serve` and `worker`.

use crate::{app::App, config::Loaded, lifecycle::Exit, telemetry, tls};

pub(super) const SERVE_HELP: &str = "\
SIGTERM or Ctrl-C: reports not ready, keeps serving for server.drain_delay, finishes its work, closes
its connections and exits with 0. A second signal ends the program at once. SIGHUP reloads the
configuration.

Exit codes: 0 stopped as asked, 69 a connection that start needs cannot be established, or the
database refuses this program, 71 the program cannot listen on the port, 75 stopped but something was
cut off, 78 the configuration has problems, 130 asked to stop twice.";

#[cfg(feature = "worker")]
pub(super) const WORKER_HELP: &str = "\
Needs TEMPORAL_ADDRESS, and the same [workflows.*] as the service. SIGTERM or Ctrl-C: accepts no more
work, finishes within server.shutdown_grace and exits with 0.

Exit codes: 0 stopped as asked, 1 it cannot run, 78 the configuration has problems, 130 asked to
stop twice.";

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
    // Tasks that did not stop in time must not delay the exit.
    runtime.shutdown_background();
    exit
}
