//! The environment in which the commands of a page run: a folder, a shell, and programs beside it.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{
    agent::Agent,
    pages::repository,
    shell::{Shell, eventually},
};

/// The programs beside the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A service on embedded defaults.
    Embedded,
    /// A service and a worker on Redis, Temporal and `PostgreSQL`.
    Servers,
    /// The same in production.
    Production,
    /// Nothing.
    Shell,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the servers are given to the tests, not to the program"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn server(name: &str) -> String {
    variable(name).unwrap_or_else(|| {
        panic!("{name} is not set: run `scripts/servers start DIR` and `source DIR/env`")
    })
}

/// A process that ends with its owner.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        let started = command.stdin(Stdio::null()).spawn();
        Self(started.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_dead = self.0.kill().is_err();
        let _reaped = self.0.wait().is_ok();
    }
}

/// A stage's share of the servers, removed at its end.
struct Servers {
    _redis: Process,
    redis_port: u16,
    database: String,
    namespace: String,
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn temporal(arguments: &[&str]) -> Command {
    let mut command = Command::new("temporal");
    command
        .args(arguments)
        .args(["--disable-config-file", "--disable-config-env"])
        .args(["--address", &server("TEST_TEMPORAL_ADDRESS")]);
    command
}

fn psql(statement: &str) -> Command {
    let mut command = Command::new("psql");
    command.args([&server("TEST_DATABASE_URL"), "-q", "-c", statement]);
    command
}

impl Servers {
    fn start(folder: &Path) -> (Self, Vec<(String, String)>) {
        let name = format!("docs_{}", uuid::Uuid::now_v7().simple());
        let port = free_port();
        let redis = Process::start(
            Command::new("redis-server")
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "yes", "--dir"])
                .arg(folder)
                .stdout(Stdio::null()),
        );
        succeed(&mut psql(&format!("create database {name}")));
        let namespace = name.replace('_', "-");
        let create = ["operator", "namespace", "create", "--retention", "24h", "-n", &namespace];
        succeed(&mut temporal(&create));
        let url = server("TEST_DATABASE_URL");
        let database = format!("{}/{name}", url.rsplit_once('/').unwrap().0);
        let variables = [
            ("REDIS_URL", format!("redis://127.0.0.1:{port}")),
            ("TEMPORAL_ADDRESS", server("TEST_TEMPORAL_ADDRESS")),
            ("TEMPORAL_NAMESPACE", namespace.clone()),
            ("DATABASE_URL", database),
        ];
        let listens = eventually(|| TcpStream::connect(("127.0.0.1", port)).ok());
        assert!(listens.is_some(), "Redis does not listen");
        let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
        (Self { _redis: redis, redis_port: port, database: name, namespace }, variables)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let drop = format!("drop database if exists {} with (force)", self.database);
        let _kept = psql(&drop).output().is_err();
        let delete = ["operator", "namespace", "delete", "--yes", "-n", &self.namespace];
        let _left = temporal(&delete).output().is_err();
    }
}

/// Dropped from first to last: the program goes before its servers.
pub(crate) struct Stage {
    pub(crate) shell: Shell,
    second: Option<Shell>,
    _agent: Option<Agent>,
    _programs: Vec<Process>,
    servers: Option<Servers>,
    port: u16,
    variables: Vec<(String, String)>,
    folder: TempDir,
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_agentarea-api"))
}

/// `cargo test` builds the program; running cargo here would wait for the outer build.
fn example() -> PathBuf {
    let example = program().with_file_name("examples").join("embedded");
    assert!(example.exists(), "the example is missing: cargo build --example embedded");
    example
}

fn path() -> String {
    let known = variable("PATH").unwrap();
    format!("{}:{known}", program().parent().unwrap().display())
}

/// Adds the production settings to the configuration of a stage; returns the variables.
fn production(folder: &Path) -> Vec<(String, String)> {
    let env = File::create(folder.join(".env")).unwrap();
    let new = ["key", "new", "--format", "env", "--key-file", "api_key"];
    let status = Command::new(program()).args(new).current_dir(folder).stdout(env).status();
    assert!(status.unwrap().success());
    let authority = format!("{}/ca.pem", server("TEST_CERTIFICATES"));
    vec![
        ("ENVIRONMENT".to_owned(), "production".to_owned()),
        ("AGENTAREA_DATABASE__POSTGRES__CA_FILE".to_owned(), authority),
        ("KEY".to_owned(), fs::read_to_string(folder.join("api_key")).unwrap().trim().to_owned()),
    ]
}

/// Starts the program with only these variables.
fn start(folder: &Path, variables: &[(String, String)], arguments: &[&str], log: &str) -> Process {
    let log = File::create(folder.join(log)).unwrap();
    let mut command = Command::new(program());
    command.args(arguments).current_dir(folder).stderr(log);
    Process::start(command.env_clear().envs(variables.iter().cloned()))
}

impl Stage {
    /// Appends `config` to the file of the environment.
    pub(crate) fn start(kind: Kind, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(&repository().join("config"), &folder.path().join("config"));
        let file = folder.path().join("config/development.toml");
        let shipped = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{shipped}\n{config}")).unwrap();
        let home = folder.path().to_str().unwrap().to_owned();
        let mut variables = vec![("PATH".to_owned(), path()), ("HOME".to_owned(), home)];
        let (mut servers, mut agent) = (None, None);
        if matches!(kind, Kind::Servers | Kind::Production) {
            let (started, addresses) = Servers::start(folder.path());
            if config.contains("AgentExecutionWorkflow") {
                agent = Some(Agent::start(&server("TEST_TEMPORAL_ADDRESS"), &started.namespace));
            }
            servers = Some(started);
            variables.extend(addresses);
        }
        if kind == Kind::Servers {
            // Readers of a page have minutes for an outage; the tests have seconds.
            let often = |connection| (format!("AGENTAREA_{connection}__PROBE__INTERVAL"), "1s");
            let probes = ["EVENT_BROKER", "EXECUTION_SERVICE", "DATABASE"].map(often);
            variables.extend(probes.map(|(name, value)| (name, value.to_owned())));
        }
        if kind == Kind::Production {
            variables.extend(production(folder.path()));
        }
        let port = free_port();
        let mut programs = Vec::new();
        if kind != Kind::Shell {
            variables.push(("PORT".to_owned(), port.to_string()));
            programs.push(start(folder.path(), &variables, &[], "log"));
        }
        if servers.is_some() {
            programs.push(start(folder.path(), &variables, &["worker"], "log-worker"));
        }
        if let Some(Process(service)) = programs.first() {
            variables.push(("SERVICE".to_owned(), service.id().to_string()));
        }
        let shell = Shell::start(folder.path(), &variables);
        let stage = Self {
            shell,
            second: None,
            _agent: agent,
            _programs: programs,
            servers,
            port,
            variables,
            folder,
        };
        stage.ready(kind);
        stage
    }

    fn ready(&self, kind: Kind) {
        let ready = eventually(|| {
            let worker = || self.log("log-worker").contains("the worker polls");
            let is_ready = match kind {
                Kind::Shell => true,
                Kind::Embedded => self.log("log").contains("ready start_ms"),
                Kind::Servers => self.log("log").contains("ready start_ms") && worker(),
                Kind::Production => self.log("log").contains("\"message\":\"ready\""),
            };
            is_ready.then_some(())
        });
        assert!(ready.is_some(), "{kind:?} is not ready:\n{}", self.log("log"));
        // The pages assume a healthy service, not only a ready one.
        let healthy = kind == Kind::Shell
            || eventually(|| {
                let health = format!("http://127.0.0.1:{}/health", self.port);
                let output = Command::new("curl").args(["-s", &health]).output().unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                (text.contains("\"healthy\"") && !text.contains("initializing")).then_some(())
            })
            .is_some();
        assert!(healthy, "{kind:?} is not healthy:\n{}", self.log("log"));
    }

    /// A log, with the port that the pages use.
    pub(crate) fn log(&self, name: &str) -> String {
        self.as_shown(&fs::read_to_string(self.folder.path().join(name)).unwrap_or_default())
    }

    /// The second shell, which stays open.
    pub(crate) fn second(&mut self) -> &mut Shell {
        self.second.get_or_insert_with(|| Shell::start(self.folder.path(), &self.variables))
    }

    /// The ports that the pages use, and those of this stage.
    fn ports(&self) -> impl Iterator<Item = (&'static str, u16)> {
        let redis = self.servers.as_ref().map(|servers| ("6379", servers.redis_port));
        [("8000", self.port)].into_iter().chain(redis)
    }

    /// A command of a page, with the ports of this stage.
    pub(crate) fn as_run(&self, command: &str) -> String {
        let command = self.ports().fold(command.to_owned(), |command, (known, port)| {
            command.replace(known, &port.to_string())
        });
        match command.split_once("cargo run --example embedded --") {
            Some((before, after)) => format!("{before}{}{after}", example().display()),
            None => command,
        }
    }

    /// Output, with the ports and names of the pages.
    pub(crate) fn as_shown(&self, output: &str) -> String {
        let output = self.ports().fold(output.to_owned(), |output, (known, port)| {
            output.replace(&format!(":{port}"), &format!(":{known}"))
        });
        match &self.servers {
            Some(servers) => output
                .replace(&servers.database, "agentarea")
                .replace(&servers.namespace, "default"),
            None => output,
        }
    }
}
