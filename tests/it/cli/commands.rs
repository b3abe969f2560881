//! The command line as people and scripts use it.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::support::{Service, Setup, answer, eventually, free_port, signal};

const ESCAPE: char = '\u{1b}';

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentarea-api"));
    command.env_clear().stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The output of a command that must succeed.
fn printed(arguments: &[&str]) -> String {
    let output = program().args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    stdout(&output)
}

/// The JSON document that a command prints, whatever its exit code.
fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("not one document: {error}\n{}", stderr(output)))
}

/// Runs a shell command on a terminal, which `script` provides.
fn on_a_terminal(folder: &Path, line: &str, variables: &[(&str, &str)]) -> String {
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", line, "/dev/null"])
        .current_dir(folder)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("script is missing: apt-get install -y bsdutils");
    stdout(&output)
}

#[test]
fn the_version_names_the_commit() {
    let text = printed(&["--version"]);
    let (version, commit) = text.trim().split_once(" (").unwrap();
    assert_eq!(version, concat!("agentarea-api ", env!("CARGO_PKG_VERSION")));
    assert!(commit.trim_end_matches(')').len() >= 7, "{text}");
}

#[test]
fn a_shell_completes_commands_and_options() {
    let script = printed(&["completions", "bash"]);
    for (words, expected) in
        [("h", "health"), ("health --key", "--key-file"), ("config sh", "show")]
    {
        let ask = format!(
            "{script}\nCOMP_WORDS=(agentarea-api {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); \
             by=$(complete -p agentarea-api | sed 's/.* -F \\([^ ]*\\) .*/\\1/'); \
             $by agentarea-api \"${{COMP_WORDS[-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let output = Command::new("bash").args(["-c", &ask]).output().unwrap();
        let replies = stdout(&output);
        assert!(replies.lines().any(|reply| reply == expected), "{words}: {replies:?}");
    }
    for shell in ["elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]);
        assert!(script.contains("completions") && script.contains("key-file"), "{shell}");
    }
}

#[test]
fn there_is_a_manual_page_for_the_program_and_for_each_command() {
    let page = printed(&["man"]);
    assert!(page.contains(".TH agentarea-api"), "{page}");
    assert!(page.contains("Exit codes") && page.contains("Examples"), "{page}");
    let page = printed(&["man", "config", "show"]);
    assert!(page.contains("grep \\-v"), "{page}");
    let folder = tempfile::tempdir().unwrap();
    printed(&["man", "--dir", folder.path().to_str().unwrap()]);
    for name in ["agentarea-api", "agentarea-api-check", "agentarea-api-key-new"] {
        assert!(folder.path().join(format!("{name}.1")).is_file(), "{name}");
    }
    let output = program().args(["man", "nothing"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn help_tells_what_it_does_and_how_it_ends() {
    for command in
        [&[][..], &["serve"], &["check"], &["health"], &["migrate"], &["config", "check"]]
    {
        let help = printed(&[command, &["--help"]].concat());
        assert!(help.contains("Exit codes: 0"), "{command:?}: {help}");
        assert!(!help.contains(ESCAPE), "{command:?}");
        let wide = help.lines().find(|line| line.chars().count() > 110);
        assert_eq!(wide, None, "{command:?} has a line that terminals break");
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn only_a_terminal_gets_colours_and_only_if_it_wants_them() {
    let folder = tempfile::tempdir().unwrap();
    let line = format!("{} check", env!("CARGO_BIN_EXE_agentarea-api"));
    let seen = on_a_terminal(folder.path(), &line, &[("TERM", "xterm")]);
    assert!(seen.contains("\u{1b}[32mok"), "{seen}");
    for plain in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let seen = on_a_terminal(folder.path(), &line, &[plain]);
        assert!(!seen.contains("\u{1b}[3") && seen.contains("event_broker"), "{seen}");
    }
    let output = program().arg("check").current_dir(folder.path()).output().unwrap();
    assert!(!stdout(&output).contains(ESCAPE), "{}", stdout(&output));
}

#[test]
fn every_value_is_a_document_too_and_secrets_are_masked_in_it() {
    let output = program()
        .args(["config", "show", "--format", "json", "--set", "server.max_connections=7"])
        .env("AGENTAREA_AUTH__MODE", "none")
        .env("PORT", "8123")
        .current_dir(tempfile::tempdir().unwrap().path())
        .output()
        .unwrap();
    let shown = document(&output);
    assert_eq!(shown["environment"], "development");
    let setting = |key: &str| {
        let settings = shown["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["key"] == key).unwrap().clone()
    };
    let port = json!({"key": "server.port", "value": 8123, "source": "PORT"});
    assert_eq!(setting("server.port"), port);
    assert_eq!(setting("server.max_connections")["source"], "command line");
    assert_eq!(setting("features.docs")["value"], true);
}

mod keys {
    use super::*;

    const LINE: &str = "AGENTAREA_AUTH__KEYS=";

    #[test]
    fn the_line_for_the_environment_never_holds_the_key() {
        let output = program()
            .args(["key", "new", "--format", "env", "--name", "it's", "--scopes", "read"])
            .output()
            .unwrap();
        let (line, key) = (stdout(&output), stderr(&output));
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.starts_with(LINE) && !line.contains(key.trim()), "{line}");
        assert!(key.starts_with("aak_"), "{key}");

        // The line works unchanged in .env and in a shell.
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".env"), &line).unwrap();
        let shell = format!(
            "{}env -i \"AGENTAREA_AUTH__KEYS=$AGENTAREA_AUTH__KEYS\" {} config show",
            line.replace('\n', "; "),
            env!("CARGO_BIN_EXE_agentarea-api")
        );
        let in_shell = Command::new("bash").args(["-c", &shell]).output().unwrap();
        let in_file =
            program().args(["config", "show"]).current_dir(folder.path()).output().unwrap();
        for output in [in_shell, in_file] {
            let shown = stdout(&output);
            assert!(shown.contains("name = \"it's\""), "{shown}{}", stderr(&output));
        }
    }

    #[test]
    fn a_key_goes_to_a_file_for_its_owner_alone_and_replaces_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let arguments = ["key", "new", "--format", "json", "--key-file", file.to_str().unwrap()];
        let output = program().args(arguments).output().unwrap();
        let made = document(&output);
        assert_eq!(made["key"], Value::Null);
        assert!(made["keys"].as_str().unwrap().contains(made["sha256"].as_str().unwrap()));
        assert_eq!(made["scopes"], json!(["read", "write", "operate"]));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let key = fs::read_to_string(&file).unwrap();
        assert!(key.starts_with("aak_") && !stderr(&output).contains(key.trim()), "{key}");

        let again = program().args(arguments).output().unwrap();
        assert_eq!((again.status.code(), again.stdout.len()), (Some(1), 0));
        assert!(stderr(&again).contains(file.to_str().unwrap()), "{}", stderr(&again));
        assert_eq!(fs::read_to_string(&file).unwrap(), key, "the key that is in use stays");

        let shown = document(&program().args(&arguments[..4]).output().unwrap());
        assert!(shown["key"].as_str().unwrap().starts_with("aak_"));
    }
}

#[cfg(feature = "sqlite")]
mod health {
    use super::*;

    /// A service that shows details only to callers with a key, and the key's file.
    async fn guarded() -> (Service, PathBuf) {
        let setup = Setup::new();
        let key_file = setup.path().join("key");
        let arguments = ["key", "new", "--format", "json", "--scopes", "read", "--key-file"];
        let output = program().args(arguments).arg(&key_file).output().unwrap();
        let service = setup
            .set("auth.mode", "api_key")
            .variable("AGENTAREA_AUTH__KEYS", document(&output)["keys"].as_str().unwrap())
            .set("health.details", "when_authorized")
            .start()
            .await;
        service.healthy().await;
        (service, key_file)
    }

    fn ask(service: &Service, arguments: &[&str]) -> Command {
        let mut command = program();
        command.args(["health", "--url", &service.base]).args(arguments);
        command.current_dir(service.path());
        command
    }

    #[tokio::test]
    async fn a_key_brings_the_details() {
        let (service, key_file) = guarded().await;
        let text = stdout(&ask(&service, &[]).output().unwrap());
        assert!(text.starts_with("healthy") && text.contains("database"), "{text}");
        assert!(text.contains("--key-file") && !text.contains("sqlite"), "{text}");

        let key = key_file.to_str().unwrap();
        let text = stdout(&ask(&service, &["--key-file", key]).output().unwrap());
        assert!(text.contains("sqlite") && text.contains("ok in "), "{text}");
        let waiting = "0 waiting for event_broker, 0.0/s in, 0.0/s out, 0 dead letters";
        assert!(text.contains(waiting), "{text}");
        assert!(!text.contains(ESCAPE), "{text}");
        let output =
            ask(&service, &["--format", "json"]).env("AGENTAREA_KEY_FILE", key).output().unwrap();
        assert_eq!(document(&output)["connections"]["details"]["database"]["backend"], "sqlite");

        fs::write(&key_file, "aak_wrong\n").unwrap();
        let text = stdout(&ask(&service, &["--key-file", key]).output().unwrap());
        assert!(text.contains("the key is unknown"), "{text}");
        fs::write(&key_file, "\n").unwrap();
        for file in [key, "nowhere"] {
            let output = ask(&service, &["--key-file", file]).output().unwrap();
            assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
            assert!(stderr(&output).contains(&format!("the key file {file} ")));
        }
    }

    #[tokio::test]
    async fn no_answer_and_no_report_are_distinguished() {
        let url = format!("http://127.0.0.1:{}", free_port());
        let output =
            program().args(["health", "--format", "json", "--url", &url]).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        assert!(stderr(&output).contains(&format!("{url}/health does not answer")));

        let service = Setup::new().start().await;
        service.healthy().await;
        let url = format!("{}/livez", service.base);
        let output = program().args(["health", "--url", &url]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("not with a health report"), "{}", stderr(&output));
    }

    /// Watches until dropped, into a file.
    struct Watch {
        child: Child,
        file: PathBuf,
    }

    impl Watch {
        fn begin(mut command: Command, folder: &Path) -> Self {
            let file = folder.join("watched");
            let child = command.stdout(File::create(&file).unwrap()).spawn().unwrap();
            Self { child, file }
        }

        fn seen(&self) -> String {
            fs::read_to_string(&self.file).unwrap()
        }

        async fn until(&self, words: &str) {
            let what = format!("{words:?} is printed");
            eventually(&what, async || self.seen().contains(words).then_some(())).await;
        }

        async fn interrupt(&mut self) -> Option<i32> {
            signal(&self.child, "-INT");
            eventually("it ends", async || self.child.try_wait().unwrap()).await.code()
        }
    }

    impl Drop for Watch {
        fn drop(&mut self) {
            let _already_dead = self.child.kill().is_err();
            let _reaped = self.child.wait().is_ok();
        }
    }

    #[tokio::test]
    async fn a_pipe_gets_one_line_for_each_change() {
        let folder = tempfile::tempdir().unwrap();
        let service = Setup::new().start().await;
        service.healthy().await;
        let mut watch =
            Watch::begin(ask(&service, &["--watch", "--interval", "100ms"]), folder.path());
        watch.until(" healthy: database initialized, ").await;
        let forced = json!({"state": "forced_open"});
        let path = "/v1/connections/event_broker/circuit-breaker";
        answer(service.put(path).json(&forced)).await;
        watch
            .until(" degraded: database initialized, event_broker initialized circuit forced_open")
            .await;
        drop(service);
        watch.until(" unreachable: http").await;
        assert_eq!(watch.interrupt().await, Some(0));
        let seen = watch.seen();
        assert_eq!(seen.lines().count(), 3, "{seen}");
        assert!(!seen.contains(ESCAPE), "{seen}");
    }

    #[tokio::test]
    async fn a_terminal_gets_the_report_redrawn() {
        let folder = tempfile::tempdir().unwrap();
        let service = Setup::new().start().await;
        service.healthy().await;
        let line = format!(
            "exec {} health --watch --interval 100ms --url {}",
            env!("CARGO_BIN_EXE_agentarea-api"),
            service.base
        );
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"])
            .env_clear()
            .env("TERM", "xterm")
            .env("PATH", "/usr/bin:/bin")
            .current_dir(folder.path())
            .stdin(Stdio::null());
        let watch = Watch::begin(command, folder.path());
        let frames = async || {
            let seen = watch.seen();
            (seen.matches("\u{1b}[H").count() > 2).then_some(seen)
        };
        let seen = eventually("it is redrawn", frames).await;
        assert!(seen.contains("\u{1b}[32mhealthy") && seen.contains("Ctrl-C ends"), "{seen}");
    }
}

#[cfg(feature = "sqlite")]
mod bad_input {
    use super::*;

    #[tokio::test]
    async fn a_data_folder_that_is_read_only_is_named() {
        let setup = Setup::new();
        let folder = setup.path();
        fs::create_dir(folder.join("data")).unwrap();
        let root = stdout(&Command::new("id").arg("-u").output().unwrap()).trim() == "0";
        // A separate mount, which ends with the process.
        let line = format!(
            "mount -t tmpfs -o ro tmpfs data && exec {} check",
            env!("CARGO_BIN_EXE_agentarea-api")
        );
        let mut command = Command::new("unshare");
        if !root {
            command.arg("--map-root-user");
        }
        let output = command
            .args(["--mount", "sh", "-c", &line])
            .current_dir(folder)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .expect("unshare is missing: apt-get install -y util-linux");
        let table = stdout(&output);
        assert_eq!(output.status.code(), Some(69), "{table}{}", stderr(&output));
        assert!(table.contains("data/agentarea.db"), "{table}");
        assert!(table.contains("Read-only file system"), "{table}");
    }

    #[tokio::test]
    async fn start_says_which_folder_it_may_not_write_to() {
        let setup = Setup::new();
        fs::write(setup.path().join("data"), "a file where the folder should be").unwrap();
        let setup =
            setup.set("database.startup", "\"fail\"").set("database.startup_timeout", "\"500ms\"");
        let (code, log) = setup.run().await;
        assert_eq!(code, Some(69), "{log}");
        assert!(log.contains("data/agentarea.db"), "{log}");
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn start_says_that_it_migrates_and_only_then() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let log = service.log();
    assert!(log.contains("migrating the schema, 1 of "), "{log}");
    assert!(log.contains("the schema is current"), "{log}");
    let service = service.kill().start().await;
    service.healthy().await;
    assert!(!service.log().contains("the schema"), "{}", service.log());
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::*;
    use crate::support::Database;

    /// The number of the advisory lock for migrations.
    const LOCK: &str = "SELECT pg_advisory_lock(4917230115)";

    #[tokio::test]
    async fn start_says_that_it_waits_for_another_that_migrates() {
        let database = Database::create().await;
        let (other, connection) =
            tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await.unwrap();
        let mut connections = tokio::task::JoinSet::new();
        connections.spawn(connection);
        other.batch_execute(LOCK).await.unwrap();
        let service = Setup::new().variable("DATABASE_URL", &database.url).start().await;
        let waits = "another instance migrates the schema, waiting for it";
        eventually("it says so", async || service.log().contains(waits).then_some(())).await;
        drop(other);
        connections.join_next().await.unwrap().unwrap().unwrap();
        service.healthy().await;
        assert!(service.log().contains("the schema is current"), "{}", service.log());
        drop(service);
        database.drop().await;
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn a_move_tells_scripts_what_it_did_and_why_it_did_not() {
        let service = Setup::new().start().await;
        service.healthy().await;
        let id = service.execute(&json!({"workflow": "echo", "input": 1})).await;
        service.result(&id).await;
        let setup = service.kill();
        let arguments = ["migrate", "--from", "sqlite:data/agentarea.db", "--format", "json"];

        let nowhere = format!("postgres://nobody@127.0.0.1:{}/none", free_port());
        let setup = setup.set("database.startup_timeout", "\"500ms\"");
        let setup = setup.variable("DATABASE_URL", &nowhere);
        let output = setup.output_of(&arguments).await;
        assert_eq!((output.status.code(), output.stdout.len()), (Some(69), 0));
        assert!(stderr(&output).contains("the configured database"), "{}", stderr(&output));

        let database = Database::create().await;
        let setup = setup.variable("DATABASE_URL", &database.url);
        let setup = setup.set("database.startup_timeout", "\"30s\"");
        let output = setup.output_of(&arguments).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let moved = document(&output);
        assert_eq!(moved["from"], "data/agentarea.db");
        assert!(moved["rows"].as_u64().unwrap() >= 1, "{moved}");
        assert!(stderr(&output).contains("migrating the schema, 1 of "), "{}", stderr(&output));
        database.drop().await;
    }
}
