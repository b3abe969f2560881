//! Processes that end with the test.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use tokio::net::TcpStream;

use super::eventually;

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// Waits until something listens on a port of this machine.
pub(crate) async fn listens(what: &str, port: u16) {
    eventually(&format!("{what} listens"), async || {
        TcpStream::connect(("127.0.0.1", port)).await.ok()
    })
    .await;
}

/// Sends a signal such as `-TERM` to a process.
pub(crate) fn signal(child: &Child, signal: &str) {
    send(signal, child.id());
}

fn send(signal: &str, id: u32) {
    let sent = Command::new("kill").args([signal, &id.to_string()]).status();
    assert!(sent.expect("kill runs").success(), "{signal} is not sent");
}

/// A process that is killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Starts it without input, and without output unless `command` redirects it to a file.
    ///
    /// # Panics
    /// When it does not start, with `remedy`.
    pub(crate) fn start(command: &mut Command, remedy: &str) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        let program = command.get_program().to_string_lossy().into_owned();
        Self(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}: {remedy}")))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        send(name, self.id());
    }

    /// Ends it with a signal, and waits for it.
    pub(crate) fn end(mut self, by: &str) {
        self.signal(by);
        self.0.wait().expect("it ends");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_dead = self.0.kill().is_err();
        let _reaped = self.0.wait().is_ok();
    }
}
