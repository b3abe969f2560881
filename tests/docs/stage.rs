//! The environment in which the commands of a page run: a folder, a shell, and programs beside it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use tokio::runtime::{self, Runtime};

use crate::{
    agent::Agent,
    pages::repository,
    servers::{Database, Process, Redis, certificate, free_port, variable},
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

/// A stage's share of the servers, removed at its end.
struct Servers {
    redis: Redis,
    database: Option<Database>,
    namespace: String,
    /// The pages are played without one.
    runtime: Runtime,
}

/// What the administrator of the shared Temporal server does with a namespace.
fn namespace(verb: &str, name: &str, options: &[&str]) -> bool {
    let output = Command::new("temporal")
        .args(["operator", "namespace", verb, "-n", name])
        .args(options)
        .args(["--disable-config-file", "--disable-config-env"])
        .args(["--address", &variable("TEST_TEMPORAL_ADDRESS")])
        .output();
    output.is_ok_and(|output| output.status.success())
}

impl Servers {
    fn start() -> Self {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (redis, database) =
            runtime.block_on(async { tokio::join!(Redis::start(), Database::create()) });
        let name = database.name().replace('_', "-");
        assert!(namespace("create", &name, &["--retention", "24h"]), "{name} is not created");
        Self { redis, database: Some(database), namespace: name, runtime }
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("it is there until the end")
    }

    fn variables(&self) -> [(String, String); 4] {
        [
            ("REDIS_URL", self.redis.url()),
            ("TEMPORAL_ADDRESS", variable("TEST_TEMPORAL_ADDRESS")),
            ("TEMPORAL_NAMESPACE", self.namespace.clone()),
            ("DATABASE_URL", self.database().url.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Some(database) = self.database.take() {
            self.runtime.block_on(database.drop());
        }
        let _left = namespace("delete", &self.namespace, &["--yes"]);
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
    format!("{}:{}", program().parent().unwrap().display(), variable("PATH"))
}

/// Adds the production settings to the configuration of a stage; returns the variables.
fn production(folder: &Path) -> Vec<(String, String)> {
    let env = File::create(folder.join(".env")).unwrap();
    let new = ["key", "new", "--format", "env", "--key-file", "api_key"];
    let status = Command::new(program()).args(new).current_dir(folder).stdout(env).status();
    assert!(status.unwrap().success());
    let authority = certificate("ca.pem").display().to_string();
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
    Process::start(command.env_clear().envs(variables.iter().cloned()), "cargo build")
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
            let started = Servers::start();
            if config.contains("AgentExecutionWorkflow") {
                agent = Some(Agent::start(&variable("TEST_TEMPORAL_ADDRESS"), &started.namespace));
            }
            variables.extend(started.variables());
            servers = Some(started);
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
        if let Some(service) = programs.first() {
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
        let redis = self.servers.as_ref().map(|servers| ("6379", servers.redis.port));
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
                .replace(servers.database().name(), "agentarea")
                .replace(&servers.namespace, "default"),
            None => output,
        }
    }
}
