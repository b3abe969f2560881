//! The configuration as an operator sees it: through the real program, with separate files and
//! variables for each test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

/// A folder to run in.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(self, file: &str, text: &str) -> Self {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_agentarea-api"))
            .args(arguments)
            .current_dir(self.0.path())
            .env_clear()
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }

    /// The value and source that `config show` prints for `key`.
    fn shown(&self, key: &str, variables: &[(&str, &str)]) -> String {
        let output = self.run(&["config", "show"], variables);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let prefix = format!("{key} = ");
        let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
        line.unwrap_or_else(|| panic!("{key} is missing in\n{text}")).to_owned()
    }

    /// The report of `config check`, which must fail.
    fn problems(&self, variables: &[(&str, &str)]) -> String {
        let output = self.run(&["config", "check"], variables);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        text
    }
}

fn shipped(place: Place) -> Place {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    ["default.toml", "development.toml", "production.toml", "test.toml"].iter().fold(
        place,
        |place, name| {
            let text = fs::read_to_string(folder.join(name)).unwrap();
            place.with(&format!("config/{name}"), &text)
        },
    )
}

#[test]
fn without_any_folder_the_compiled_defaults_run() {
    assert_eq!(Place::new().shown("server.port", &[]), "8000  # compiled default");
}

#[test]
fn later_layers_win_in_the_documented_order() {
    let place = Place::new()
        .with("config/default.toml", "[server]\nport = 1\nmax_connections = 10\n")
        .with("config/staging.toml", "[server]\nport = 2\n")
        .with(".env", "ENVIRONMENT=staging\n");
    assert_eq!(place.shown("server.max_connections", &[]), "10  # config/default.toml:3");
    assert_eq!(place.shown("server.port", &[]), "2  # config/staging.toml:2");
    let place = place.with(".env", "ENVIRONMENT=staging\nPORT=3\n");
    assert_eq!(place.shown("server.port", &[]), "3  # PORT (.env)");
    let place = place.with(".env", "ENVIRONMENT=staging\nAGENTAREA_SERVER__PORT=4\n");
    assert_eq!(place.shown("server.port", &[]), "4  # AGENTAREA_SERVER__PORT (.env)");
    assert_eq!(place.shown("server.port", &[("PORT", "5")]), "5  # PORT");
    let variables = [("PORT", "5"), ("AGENTAREA_SERVER__PORT", "6")];
    assert_eq!(place.shown("server.port", &variables), "6  # AGENTAREA_SERVER__PORT");
    let output = place.run(&["--set", "server.port=7", "config", "show"], &variables);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("server.port = 7  # command line"), "{text}");
}

#[test]
fn all_problems_are_reported_at_once_with_place_and_remedy() {
    let place = Place::new().with(
        "config/default.toml",
        "[server]\nprot = 8000\nrequest_timeout = \"soon\"\n\n[database.pool]\nmax_size = 0\n",
    );
    let report = place.problems(&[
        ("AGENTAREA_EVENT_BROKER__BACKEND", "kafka"),
        ("AGENTAREA_SERVER__MAX_BODI", "1MiB"),
        ("AGENTAREA_SERVER_HOST", "::"),
    ]);
    for line in [
        "the configuration has 6 problems:",
        "config/default.toml:2: server.prot: unknown key; did you mean `server.port`?",
        "config/default.toml:3: server.request_timeout: \"soon\" is not a duration",
        "config/default.toml:6: database.pool.max_size: expected a whole number, 1 to 1000, found 0",
        "AGENTAREA_EVENT_BROKER__BACKEND: event_broker.backend: expected one of \"memory\"",
        "did you mean `AGENTAREA_SERVER__MAX_BODY`?",
        "did you mean `AGENTAREA_SERVER__HOST`?",
    ] {
        assert!(report.contains(line), "{line:?} is missing in\n{report}");
    }
}

/// One problem never hides another.
mod one_report {
    use super::*;

    fn assert_report(report: &str, lines: &[&str]) {
        for line in lines {
            assert!(report.contains(line), "{line:?} is missing in\n{report}");
        }
        let noun = if lines.len() == 1 { "problem" } else { "problems" };
        let count = format!("the configuration has {} {noun}:", lines.len());
        assert!(report.contains(&count), "{count:?} is missing in\n{report}");
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn a_wrong_type_hides_neither_combinations_nor_what_production_demands() {
        let report = Place::new().problems(&[
            ("ENVIRONMENT", "production"),
            ("PORT", "many"),
            ("AGENTAREA_DATABASE__TIMEOUT__ATTEMPT", "20s"),
            ("AGENTAREA_DATABASE__ALLOW_EMBEDDED_IN_PRODUCTION", "true"),
            ("AGENTAREA_DATABASE__BACKEND", "sqlite"),
            ("AGENTAREA_EVENT_BROKER__BACKEND", "memory"),
            ("AGENTAREA_EXECUTION_SERVICE__BACKEND", "embedded"),
        ]);
        let embedded = "serves one process only, which production does not allow";
        assert_report(
            &report,
            &[
                "PORT: server.port: expected a whole number, 0 to 65535, found \"many\"",
                "AGENTAREA_DATABASE__TIMEOUT__ATTEMPT: database.timeout.attempt: one attempt (20s)",
                &format!("event_broker.backend: \"memory\" {embedded}"),
                &format!("execution_service.backend: \"embedded\" {embedded}"),
                "auth.keys: mode = \"api_key\" needs at least one key",
            ],
        );
    }

    #[test]
    fn a_broken_file_and_a_broken_env_file_hide_nothing() {
        let place = Place::new()
            .with(
                "config/default.toml",
                "[server]\nport = \nmax_connections = 0\n[auth]\nopen_metrics = tru\n",
            )
            .with("config/staging.toml", "[outbox\nbatch = 1\n[outbox]\nlease = \"1s\"\n")
            .with(".env", "ENVIRONMENT=staging\nRUST_LOG=a b\nPORT=many\nA='\n");
        assert_report(
            &place.problems(&[("AGENTAREA_OUTBOX__POLL_INTERVAL", "1s")]),
            &[
                "config/default.toml:2: column 8: ",
                "config/default.toml:3: server.max_connections: expected a whole number",
                "config/default.toml:5: column 16: ",
                "config/staging.toml:1: column 8: ",
                ".env:2: cannot be read",
                ".env:4: cannot be read",
                "PORT (.env): server.port: expected a whole number",
            ],
        );
    }

    #[test]
    fn problems_that_depend_on_an_unreadable_value_are_not_reported() {
        let keys = "[auth]\nmode = \"api_key\"\nkeys = [{ name = \"ci\" sha256 = \"x\" }]\n";
        let place = Place::new().with("config/default.toml", keys);
        assert_report(&place.problems(&[]), &["config/default.toml:3: column 23: "]);
        for (variables, line) in [
            (
                [
                    ("AGENTAREA_DATABASE__TIMEOUT__TOTAL", "x"),
                    ("AGENTAREA_DATABASE__TIMEOUT__ATTEMPT", "20s"),
                ],
                "database.timeout.total: \"x\" is not a duration",
            ),
            (
                [("AGENTAREA_AUTH__KYES", "[]"), ("AGENTAREA_AUTH__MODE", "api_key")],
                "auth.kyes: unknown key; did you mean `AGENTAREA_AUTH__KEYS`?",
            ),
            (
                [
                    ("AGENTAREA_WORKFLOWS__CALL__URL", ""),
                    ("AGENTAREA_WORKFLOWS__CALL__KIND", "htpp"),
                ],
                "workflows.call.kind: expected one of \"echo\", \"http\", \"temporal\"",
            ),
        ] {
            assert_report(&Place::new().problems(&variables), &[line]);
        }
        let keys = "[[auth.keys]]\nname = \"a\"\nsha256 = \"x\nscopes = []\n";
        let place = Place::new().with("config/default.toml", keys);
        assert_report(&place.problems(&[]), &["config/default.toml:3: column 12: "]);
        // An unreadable folder could contain any key.
        let variables =
            [("ENVIRONMENT", "production"), ("AGENTAREA_CONFIG_DIR", "nowhere"), ("PORT", "many")];
        assert_report(
            &Place::new().problems(&variables),
            &["nowhere: the configuration folder does not exist", "PORT: server.port: expected"],
        );
    }

    #[test]
    fn a_value_that_is_overridden_is_checked_in_its_own_place() {
        let place = Place::new()
            .with(
                "config/default.toml",
                "[server]\nport = \"many\"\nallowed_hosts = [\"http://h\"]\n[telemetry]\nlog_filter = \"inof\"\n",
            )
            .with("config/development.toml", "[server]\nport = 70000\nallowed_hosts = []\n")
            .with(".env", "PORT=none\nAGENTAREA_WORKFLOWS__ECHO__KIND=ehco\n");
        let variables =
            [("PORT", "1"), ("RUST_LOG", "info"), ("AGENTAREA_WORKFLOWS__ECHO__KIND", "echo")];
        assert_report(
            &place.problems(&variables),
            &[
                "config/default.toml:2: server.port: expected a whole number",
                "config/default.toml:3: server.allowed_hosts.0: expected a name",
                "config/default.toml:5: telemetry.log_filter: \"inof\" is not a level",
                "config/development.toml:2: server.port: expected a whole number, 0 to 65535",
                "PORT (.env): server.port: expected a whole number",
                "AGENTAREA_WORKFLOWS__ECHO__KIND (.env): workflows.echo.kind: expected one of",
            ],
        );
    }

    #[test]
    fn an_overridden_value_that_fits_its_own_layer_or_the_final_ones_is_good() {
        let place = Place::new()
            .with("config/default.toml", "[database.timeout]\nattempt = \"20s\"\n")
            .with("config/development.toml", "[database.timeout]\ntotal = \"30s\"\n");
        let variables = [("AGENTAREA_DATABASE__TIMEOUT__ATTEMPT", "25s")];
        assert!(place.run(&["config", "check"], &variables).status.success());
        let place = Place::new().with(
            "config/default.toml",
            "[database.timeout]\nattempt = \"20s\"\ntotal = \"30s\"\n",
        );
        let variables = [
            ("AGENTAREA_DATABASE__TIMEOUT__ATTEMPT", "2s"),
            ("AGENTAREA_DATABASE__TIMEOUT__TOTAL", "3s"),
        ];
        assert!(place.run(&["config", "check"], &variables).status.success());
    }

    #[cfg(feature = "redis")]
    #[test]
    fn an_address_that_is_overridden_is_checked_too() {
        let place = Place::new().with(".env", "REDIS_URL=redis://h/x\n");
        assert_report(
            &place.problems(&[("REDIS_URL", "redis://h")]),
            &["REDIS_URL (.env): event_broker.redis.url: cannot be read"],
        );
        let variables = [
            ("REDIS_URL", "redis://h/x"),
            ("AGENTAREA_EVENT_BROKER__REDIS__MODE", "sentinell"),
            ("AGENTAREA_EVENT_BROKER__REDIS__MAX_EVENTS", "many"),
        ];
        assert_report(
            &Place::new().problems(&variables),
            &[
                "REDIS_URL: event_broker.redis.url: cannot be read",
                "event_broker.redis.mode: expected one of",
                "event_broker.redis.max_events: expected a whole number",
            ],
        );
    }
}

mod suggestions {
    use super::*;

    #[test]
    fn a_typo_is_recognised_at_every_depth() {
        let place = Place::new().with(
            "config/default.toml",
            "port = 1\n[workflows.call]\nknid = \"http\"\n[workflows.call.retry]\n\
             max_atempts = 2\n[health.http_status]\nhealty = 200\n[server.tls]\ncert = \"a\"\n\
             [[auth.keys]]\nname = \"a\"\nsha265 = \"b\"\nscopes = [\"raed\"]\n[workflow.x]\n",
        );
        let report = place.problems(&[
            ("AGENTAREA_WORKFLOWS__CALL__WORKFLOW_TIPE", "x"),
            ("AGENTAREA_WORKFLOWS__CALL__RETRY__MULTIPLYER", "2"),
        ]);
        for line in [
            "default.toml:1: port: unknown key; did you mean `server.port`?",
            "default.toml:3: workflows.call.knid: unknown key; did you mean `workflows.call.kind`?",
            "default.toml:5: workflows.call.retry.max_atempts: unknown key; did you mean \
             `workflows.call.retry.max_attempts`?",
            "default.toml:7: health.http_status.healty: unknown key; did you mean \
             `health.http_status.healthy`?",
            "default.toml:9: server.tls.cert: unknown key; expected one of cert_file, key_file",
            "default.toml:12: auth.keys.0.sha265: unknown key; did you mean `auth.keys.0.sha256`?",
            "auth.keys.0.scopes.0: expected one of \"read\", \"write\", \"operate\", found \
             \"raed\"; did you mean `read`?",
            "default.toml:14: workflow: unknown key; did you mean `workflows`?",
            "did you mean `AGENTAREA_WORKFLOWS__CALL__WORKFLOW_TYPE`?",
            "did you mean `AGENTAREA_WORKFLOWS__CALL__RETRY__MULTIPLIER`?",
        ] {
            assert!(report.contains(line), "{line:?} is missing in\n{report}");
        }
    }

    #[test]
    fn what_a_workflow_may_hold_is_listed_where_nothing_is_near() {
        let place = Place::new().with("config/default.toml", "[workflows.call]\ncolour = 1\n");
        let report = place.problems(&[]);
        let line = "workflows.call.colour: unknown key; expected one of delay, kind, max_answer, \
                    retry, task_queue, timeout, url, workflow_type";
        assert!(report.contains(line), "{report}");
    }

    #[test]
    fn a_typo_in_a_value_is_recognised() {
        for (variable, value, meant) in [
            ("AGENTAREA_WORKFLOWS__ECHO__KIND", "ehco", "echo"),
            ("AGENTAREA_EVENT_BROKER__BACKEND", "memry", "memory"),
            ("AGENTAREA_DATABASE__STARTUP", "backgroud", "background"),
            ("AGENTAREA_DATABASE__RETRY__JITTER", "ful", "full"),
            ("AGENTAREA_AUTH__MODE", "apikey", "api_key"),
            ("AGENTAREA_HEALTH__DETAILS", "Never", "never"),
            ("AGENTAREA_TELEMETRY__LOG_FORMAT", "jsn", "json"),
            ("AGENTAREA_TELEMETRY__LOG_ROTATION", "dayly", "daily"),
            ("RUST_LOG", "inof", "info"),
        ] {
            let report = Place::new().problems(&[(variable, value)]);
            assert!(report.contains(&format!("; did you mean `{meant}`?")), "{report}");
        }
        let report = Place::new().problems(&[("AGENTAREA_WORKFLOWS__ECHO__KIND", "lambda")]);
        assert!(!report.contains("did you mean"), "{report}");
    }
}

#[test]
fn an_override_without_its_key_is_not_repeated() {
    let output = Place::new().run(&["--set", "SECRET", "config", "check"], &[]);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--set needs KEY=VALUE"), "{text}");
    assert!(!text.contains("SECRET"), "{text}");
}

#[test]
fn combinations_that_cannot_work_are_refused() {
    let report = Place::new().problems(&[
        ("AGENTAREA_DATABASE__STARTUP", "lazy"),
        ("AGENTAREA_DATABASE__TIMEOUT__ATTEMPT", "20s"),
        ("AGENTAREA_EVENT_BROKER__RETRY__INITIAL_BACKOFF", "20s"),
        ("AGENTAREA_EVENT_BROKER__CIRCUIT_BREAKER__OPEN_FOR", "2m"),
        ("AGENTAREA_EVENT_BROKER__CIRCUIT_BREAKER__SLOW_CALL", "5s"),
        ("AGENTAREA_EXECUTION_SERVICE__CIRCUIT_BREAKER__HALF_OPEN_TIMEOUT", "1s"),
        ("AGENTAREA_EXECUTION_SERVICE__CONCURRENCY__MAX_IN_FLIGHT", "2"),
        ("AGENTAREA_DATABASE__POOL__IDLE_TIMEOUT", "1m"),
        ("AGENTAREA_EVENT_BROKER__POOL__MAX_LIFETIME", "2m"),
        ("AGENTAREA_EXECUTION_SERVICE__POOL__KEEPALIVE", "10m"),
        ("AGENTAREA_WORKFLOWS__CALL__KIND", "http"),
        ("AGENTAREA_SERVER__TLS__CERT_FILE", "cert.pem"),
        ("AGENTAREA_SERVER__ALLOWED_HOSTS", r#"["*.a.example", "http://b.example"]"#),
    ]);
    for line in [
        "database.startup: the database is never lazy",
        "database.timeout.attempt: one attempt",
        "event_broker.retry.initial_backoff: the first pause (20s) may not exceed the longest",
        "event_broker.retry.initial_backoff: a pause as long as the whole call",
        "event_broker.circuit_breaker.open_for: may not exceed circuit_breaker.max_open_for (60s)",
        "event_broker.circuit_breaker.slow_call: must be less than timeout.attempt (5s)",
        "execution_service.circuit_breaker.half_open_timeout: may not be less than timeout.attempt",
        "execution_service.circuit_breaker.half_open_calls: may not exceed concurrency.max_in_flight",
        "database.pool.keepalive: would never check a connection before it is closed: it must be \
         less than pool.idle_timeout (1m); \"0s\" switches the checks off",
        "event_broker.pool.keepalive: would never check a connection before it is closed: it must \
         be less than pool.max_lifetime (2m)",
        "execution_service.pool.keepalive: would never check a connection before it is closed: it \
         must be less than pool.idle_timeout (10m)",
        "workflows.call.url: a workflow of kind \"http\" needs url",
        "server.tls: TLS needs both cert_file and key_file",
        "server.allowed_hosts.1: expected a name such as \"api.example.org\"",
    ] {
        assert!(report.contains(line), "{line:?} is missing in\n{report}");
    }
}

#[test]
fn a_broken_file_is_named_with_its_line() {
    let report = Place::new().with("config/default.toml", "[server\nport = 1\n").problems(&[]);
    assert!(report.contains("config/default.toml:1"), "{report}");
    let output = Place::new().run(&["--config-dir", "nowhere", "config", "check"], &[]);
    let report = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(report.contains("nowhere: the configuration folder does not exist"), "{report}");
}

#[test]
fn a_variable_is_read_without_the_blanks_and_line_ends_around_it() {
    let place = Place::new()
        .with("config/staging.toml", "[server]\nport = 2\n")
        .with(".env", "AGENTAREA_SERVER__DRAIN_DELAY=\"7s\\n\"\n");
    let variables = [
        ("ENVIRONMENT", " staging\r\n"),
        ("RUST_LOG", "warn\n"),
        ("AGENTAREA_SERVER__MAX_CONNECTIONS", "\t10 "),
    ];
    assert_eq!(place.shown("server.port", &variables), "2  # config/staging.toml:2");
    let drain_delay = "\"7s\"  # AGENTAREA_SERVER__DRAIN_DELAY (.env)";
    assert_eq!(place.shown("server.drain_delay", &variables), drain_delay);
    assert_eq!(place.shown("telemetry.log_filter", &variables), "\"warn\"  # RUST_LOG");
    let most = "10  # AGENTAREA_SERVER__MAX_CONNECTIONS";
    assert_eq!(place.shown("server.max_connections", &variables), most);
    // A stray line end must not disable production mode.
    assert!(Place::new().problems(&[("ENVIRONMENT", "production\n")]).contains("auth."));
    let output = Place::new().run(&["config", "check"], &[("ENVIRONMENT", " \n")]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "the configuration for \"development\" is valid\n");
}

#[test]
fn an_environment_is_one_word_and_never_a_file_outside_the_folder() {
    let place = Place::new()
        .with("config/default.toml", "")
        .with("evil.toml", "[server]\nprot = 1\n")
        .with(".env", "");
    let outside = place.0.path().join("evil").display().to_string();
    for name in ["../evil", outside.as_str(), "a b", "a.b", "pr\u{f6}d", "production\n#", "\"dev\""]
    {
        let report = place.problems(&[("ENVIRONMENT", name)]);
        let line =
            "ENVIRONMENT: names no environment; expected one word of letters, digits, - and _";
        assert!(report.contains(line), "{name:?}\n{report}");
        assert!(!report.contains("evil"), "{name:?}\n{report}");
    }
    let report = place.with(".env", "ENVIRONMENT=../evil\nPORT=many\n").problems(&[]);
    for line in ["ENVIRONMENT (.env): names no environment", "PORT (.env): server.port"] {
        assert!(report.contains(line), "{line:?} is missing in\n{report}");
    }
}

/// A container engine creates a folder when the file to mount does not exist.
mod wrong_mounts {
    use super::*;

    fn folder(place: &Place, name: &str) {
        fs::create_dir_all(place.0.path().join(name)).unwrap();
    }

    #[test]
    fn a_folder_in_the_place_of_a_file_is_named() {
        let production = [("ENVIRONMENT", "staging")];
        for (name, variables) in [
            ("config/default.toml", &[][..]),
            ("config/staging.toml", &production[..]),
            (".env", &[][..]),
        ] {
            let place = Place::new();
            folder(&place, name);
            let report = place.problems(variables);
            let line = format!("{name}: cannot be read: it is a folder; a container engine makes");
            assert!(report.contains(&line), "{line:?} is missing in\n{report}");
        }
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_named() {
        let report = Place::new().with("config", "[server]\n").problems(&[]);
        assert!(
            report.contains("config: is a file, but the configuration is a folder"),
            "{report}"
        );
    }

    #[test]
    fn a_link_that_leads_nowhere_is_named() {
        let place = Place::new();
        folder(&place, "config");
        let link = place.0.path().join("config/default.toml");
        std::os::unix::fs::symlink("..data/default.toml", link).unwrap();
        let report = place.problems(&[]);
        let expected =
            "config/default.toml: is a link to ..data/default.toml, which does not exist";
        assert!(report.contains(expected), "{report}");
    }

    #[test]
    fn a_named_folder_without_the_files_is_refused_and_shows_what_it_holds() {
        let place = Place::new();
        folder(&place, "mounted");
        let variables = [("AGENTAREA_CONFIG_DIR", "mounted"), ("ENVIRONMENT", "staging")];
        let line = "mounted: the configuration folder has neither default.toml nor staging.toml; \
                    it contains ";
        let report = place.problems(&variables);
        assert!(report.contains(&format!("{line}nothing; ")), "{report}");
        let place = place.with("mounted/Staging.toml", "").with("mounted/defaults.toml", "");
        let report = place.problems(&variables);
        assert!(report.contains(&format!("{line}Staging.toml, defaults.toml; ")), "{report}");
        let place = place.with("mounted/staging.toml", "");
        assert!(place.run(&["config", "check"], &variables).status.success());
        // The default folder may contain anything.
        let place = Place::new();
        folder(&place, "config");
        assert!(place.run(&["config", "check"], &[]).status.success());
    }

    #[cfg(feature = "redis")]
    #[test]
    fn a_secret_that_is_a_folder_or_empty_is_named() {
        let place = Place::new().with("empty", "\n");
        folder(&place, "secret");
        for (file, complaint) in [
            (
                "secret",
                "\"secret\" cannot be read: Is a directory (os error 21); it is a folder; a",
            ),
            ("empty", "\"empty\" is empty"),
        ] {
            let report = place.problems(&[("AGENTAREA_EVENT_BROKER__REDIS__URL_FILE", file)]);
            let line = format!(
                "AGENTAREA_EVENT_BROKER__REDIS__URL_FILE: event_broker.redis.url_file: {complaint}"
            );
            assert!(report.contains(&line), "{line:?} is missing in\n{report}");
        }
    }
}

/// The values that compose produces for a misspelt or unset variable.
mod variables_that_nobody_filled_in {
    use super::*;

    #[test]
    fn a_placeholder_is_named_and_its_default_is_not_shown() {
        let place = Place::new().with(".env", "AGENTAREA_SERVER__HOST='${HOST}'\n");
        let report = place.problems(&[
            ("PORT", "${PORT}"),
            ("AGENTAREA_OUTBOX__LINGER", "${LINGER:-hunter2}"),
            ("HOME", "${ELSEWHERE}"),
        ]);
        for line in [
            "PORT: contains ${PORT} literally",
            "AGENTAREA_OUTBOX__LINGER: contains ${LINGER} literally",
            "AGENTAREA_SERVER__HOST (.env): contains ${HOST} literally",
        ] {
            assert!(report.contains(line), "{line:?} is missing in\n{report}");
        }
        assert!(!report.contains("ELSEWHERE: "), "not ours\n{report}");
    }

    #[test]
    fn an_empty_number_is_named() {
        let report = Place::new().problems(&[("AGENTAREA_SERVER__PORT", "")]);
        let line = "AGENTAREA_SERVER__PORT: server.port: expected a whole number, 0 to 65535";
        assert!(report.contains(line), "{report}");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn an_address_that_lost_its_host_is_refused_and_an_empty_one_is_mentioned() {
        let report =
            Place::new().with(".env", "REDIS_URL=redis://${REDIS_HOST}:6379\n").problems(&[]);
        assert!(report.contains("REDIS_URL (.env)"), "{report}");
        let output = Place::new().run(&["config", "check"], &[("REDIS_URL", "")]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("warning: REDIS_URL is empty, so it counts as not set"), "{told}");
        assert!(output.status.success());
    }
}

/// Inputs with a secret, the word `SECRET`: under a wrong key, in a line with a typo, in an
/// ambiguous URL.
mod secrets {
    use super::*;

    const URL: &str = "postgres://u:SECRET@h/x";

    /// The output of `config check` and `config show`.
    fn printed(place: &Place, arguments: &[&str], variables: &[(&str, &str)]) -> String {
        let commands: [&[&str]; 3] =
            [&["config", "check"], &["config", "show"], &["config", "show", "--format", "json"]];
        let outputs = commands.map(|command| place.run(&[arguments, command].concat(), variables));
        let told = outputs.into_iter().flat_map(|output| [output.stdout, output.stderr]);
        String::from_utf8(told.flatten().collect()).unwrap()
    }

    #[test]
    fn no_value_of_a_variable_prints_that_may_be_one() {
        for variable in [
            ("AGENTAREA_AUTH__KEYS", "SECRET"),
            ("AGENTAREA_AUTH__KEYS", "['SECRET']"),
            ("AGENTAREA_AUTH__KEYS", "[{ name = 'u:SECRET', sha256 = 'SECRET', scopes = [] }]"),
            ("AGENTAREA_AUTH__KEYS", "[{ name = 'u', sha256 = 'x', scopes = ['u:SECRET'] }]"),
            ("AGENTAREA_AUTH__MODE", URL),
            ("AGENTAREA_DATABASE", URL),
            ("AGENTAREA_DATABASE__BACKEND", URL),
            ("AGENTAREA_DATABASE__POSTGRES", URL),
            ("AGENTAREA_DATABASE__POSTGRES__PASSWORD", "https://SECRET"),
            ("AGENTAREA_DATABASE__POSTGRES__URL_FILE", URL),
            ("AGENTAREA_DATABASE__SQLITE__PATH", URL),
            ("AGENTAREA_EVENT_BROKER__REDIS__NODES", "['redis://u:SECRET@h:1', 'u:SECRET@h:1']"),
            ("AGENTAREA_FEATURES__DOCS", URL),
            ("AGENTAREA_OUTBOX__MAX_ROWS", URL),
            ("AGENTAREA_SERVER__DRAIN_DELAY", URL),
            ("AGENTAREA_SERVER__HOST", URL),
            ("AGENTAREA_SERVER__MAX_BODY", URL),
            ("AGENTAREA_TELEMETRY__OTLP_ENDPOINT", "https://u:SECRET@h"),
            ("AGENTAREA_TELEMETRY__OTLP_ENDPOINT", URL),
            ("AGENTAREA_WORKFLOWS__CALL__KIND", URL),
            ("AGENTAREA_WORKFLOWS__CALL__URL", "https://u:SECRET@h/x?token=SECRET"),
            ("DATABASE_URL", "mysql://u:SECRET@h/x"),
            ("DATABASE_URL", "postgres://h/x?password=SECRET"),
            ("DATABASE_URL", "postgres://h/x?password=a@SECRET"),
            ("DATABASE_URL", "postgres://u:12/SECRET@h/x"),
            ("DATABASE_URL", "postgres://u:SECRET/x"),
            ("DATABASE_URL", "postgres://u:SECRET@h:port/x"),
            ("DATABASE_URL", URL),
            ("ENVIRONMENT", URL),
            ("PORT", URL),
            ("REDIS_URL", "redis://u:12#SECRET@h"),
            ("REDIS_URL", "redis://u:SECRET@h/x"),
            ("REDIS_URL", "u:SECRET@h"),
            ("RUST_LOG", "info,redis://u:SECRET@h"),
            ("RUST_LOG", "pa$SECRET"),
            ("TEMPORAL_ADDRESS", "http://u:SECRET@h:1"),
            ("TEMPORAL_ADDRESS", "u:SECRET@h:1"),
        ] {
            for backend in ["AGENTAREA_EXECUTION_SERVICE__BACKEND", "UNUSED"] {
                let variables = [variable, (backend, "embedded")];
                let text = printed(&Place::new(), &[], &variables);
                assert!(!text.contains("SECRET"), "{variable:?}\n{text}");
                let assignment = format!("{}='{}'\n", variable.0, variable.1.replace('\'', "\""));
                let text = printed(&Place::new().with(".env", &assignment), &[], &variables[1..]);
                assert!(!text.contains("SECRET"), "{assignment}\n{text}");
            }
        }
        for assignment in ["server.port", "database.postgres", "auth.keys"] {
            let text = printed(&Place::new(), &["--set", &format!("{assignment}={URL}")], &[]);
            assert!(!text.contains("SECRET"), "{assignment}\n{text}");
        }
        let text = printed(&Place::new(), &["--set", &format!("{URL}?sslmode=require")], &[]);
        assert!(!text.contains("SECRET"), "{text}");
    }

    #[test]
    fn no_line_of_a_file_prints_that_may_hold_one() {
        for (text, problem) in [
            ("[database.postgres]\nurl = \"postgres://u:SECRET@h\n", ":2: column 29: "),
            ("[database.postgres]\nurl = postgres://u:SECRET@h\n", ":2: column 7: "),
            ("url: \"postgres://u:SECRET@h\"\n", ":1: column 4: "),
            (
                "[event_broker.redis]\npassword = \"SECRET\"\npassword = \"SECRET\"\n",
                ":3: column 1: duplicate key `password` in table `event_broker.redis`",
            ),
            (
                "\"redis://:SECRET@h\" = 1\n\"redis://:SECRET@h\" = 1\n",
                ":2: column 1: is not valid TOML",
            ),
            ("\"redis://:SECRET@h\" = 1\n", ":1: a key that may be a secret: unknown key"),
            ("[auth]\nkeys = \"SECRET\"\n", ":2: auth.keys: expected a list, found text"),
            (
                "[database]\nsqlite = \"postgres://u:SECRET@h\"\n",
                ":2: database.sqlite: expected a table, found text",
            ),
            (
                "[database]\nbackend = \"postgres://u:SECRET@h\"\n",
                ", found text that may be a secret",
            ),
        ] {
            let place = Place::new().with("config/default.toml", text);
            let told = printed(&place, &[], &[]);
            assert!(told.contains(problem), "{text}{problem:?} is missing in\n{told}");
            assert!(!told.contains("SECRET"), "{text}\n{told}");
        }
        for entry in [
            "REDIS_URL=redis://:SECRET and more@h",
            "REDIS_URL redis://:SECRET@h",
            "REDIS_URL: redis://:SECRET@h",
            "REDIS_URL='redis://:SECRET@h",
            "redis://:SECRET@h",
        ] {
            let place = Place::new().with(".env", &format!("# first\nPORT=1\n{entry}\nA=b\n"));
            let told = printed(&place, &[], &[]);
            let problem = ".env:3: cannot be read; expected a line of the form NAME=value";
            assert!(told.contains(problem), "{entry}\n{told}");
            assert!(!told.contains("SECRET"), "{entry}\n{told}");
        }
    }

    #[test]
    fn a_masked_url_still_shows_where_it_leads() {
        let variables = [
            ("AGENTAREA_WORKFLOWS__CALL__KIND", "http"),
            ("AGENTAREA_WORKFLOWS__CALL__URL", "https://u:SECRET@h/run?token=SECRET"),
        ];
        let shown = Place::new().shown("workflows.call.url", &variables);
        assert_eq!(shown, "\"https://***@h/run?***\"  # AGENTAREA_WORKFLOWS__CALL__URL");
    }
}

#[cfg(all(feature = "redis", feature = "temporal", feature = "postgres", feature = "sqlite"))]
mod with_all_backends {
    use super::*;

    #[test]
    fn well_known_variables_set_the_address_and_select_the_backend() {
        let variables = [
            ("REDIS_URL", "redis://redis:6379"),
            ("TEMPORAL_ADDRESS", "temporal:7233"),
            ("DATABASE_URL", "postgres://user:hunter2@postgres/agentarea"),
        ];
        let place = Place::new();
        assert_eq!(place.shown("event_broker.backend", &variables), "\"redis\"  # REDIS_URL");
        let temporal = "\"temporal\"  # TEMPORAL_ADDRESS";
        assert_eq!(place.shown("execution_service.backend", &variables), temporal);
        assert_eq!(place.shown("database.backend", &variables), "\"postgres\"  # DATABASE_URL");
        let url = place.shown("database.postgres.url", &variables);
        assert_eq!(url, "\"postgres://***@postgres/agentarea\"  # DATABASE_URL");
        let sqlite = [("DATABASE_URL", "sqlite:other.db")];
        assert_eq!(place.shown("database.sqlite.path", &sqlite), "\"other.db\"  # DATABASE_URL");
        let report = place.problems(&[("DATABASE_URL", "mysql://x")]);
        assert!(report.contains("DATABASE_URL: cannot be used; expected"), "{report}");
    }

    #[test]
    fn an_explicit_backend_wins_over_a_well_known_variable() {
        let variables =
            [("REDIS_URL", "redis://redis:6379"), ("AGENTAREA_EVENT_BROKER__BACKEND", "memory")];
        let shown = Place::new().shown("event_broker.backend", &variables);
        assert_eq!(shown, "\"memory\"  # AGENTAREA_EVENT_BROKER__BACKEND");
    }

    #[test]
    fn production_lists_what_is_missing_with_an_example_each() {
        let report = shipped(Place::new()).problems(&[("ENVIRONMENT", "production")]);
        for line in
            ["REDIS_URL=redis://", "TEMPORAL_ADDRESS=", "DATABASE_URL=postgres://", "key new"]
        {
            assert!(report.contains(line), "{line:?} is missing in\n{report}");
        }
        // The same without the shipped file.
        assert_eq!(Place::new().problems(&[("ENVIRONMENT", "production")]), report);
    }

    const PRODUCTION: [(&str, &str); 5] = [
        ("ENVIRONMENT", "production"),
        ("REDIS_URL", "redis://redis:6379"),
        ("TEMPORAL_ADDRESS", "temporal:7233"),
        ("DATABASE_URL", "postgres://user:hunter2@postgres/agentarea"),
        (
            "AGENTAREA_AUTH__KEYS",
            "[{ name = \"ci\", scopes = [\"read\"], sha256 = \
             \"d7b923210506ec90347a8555483bfd529618794b6ad18589e55d7fc25ecbac0a\" }]",
        ),
    ];

    #[test]
    fn production_without_its_folder_is_as_safe_as_with_it() {
        let values = |place: &Place| {
            let output = place.run(&["config", "show"], &PRODUCTION);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines()
                .map(|line| line.rsplit_once("  # ").unwrap_or((line, "")).0.to_owned())
                .collect::<Vec<_>>()
        };
        let (with, without) = (shipped(Place::new()), Place::new());
        assert_eq!(values(&without), values(&with));
        // The same with a folder that has fewer settings.
        let short = Place::new().with("config/production.toml", "[server]\n");
        assert_eq!(values(&short), values(&with));
        let tls = "\"verify\"  # compiled default for production";
        assert_eq!(without.shown("database.postgres.tls", &PRODUCTION), tls);
        let shown = with.shown("database.postgres.tls", &PRODUCTION);
        assert!(shown.starts_with("\"verify\"  # config/production.toml:"), "{shown}");
        assert_eq!(without.shown("database.postgres.tls", &[]), "\"prefer\"  # compiled default");
    }

    #[test]
    fn production_defaults_yield_only_to_settings_for_production() {
        let key = "auth.open_metrics";
        let place = Place::new().with("config/default.toml", "[auth]\nopen_metrics = true\n");
        let compiled = "false  # compiled default for production";
        assert_eq!(place.shown(key, &PRODUCTION), compiled);
        let place = place.with("config/production.toml", "[auth]\nopen_metrics = true\n");
        assert_eq!(place.shown(key, &PRODUCTION), "true  # config/production.toml:2");
        let place = Place::new().with(".env", "AGENTAREA_AUTH__OPEN_METRICS=true\n");
        assert_eq!(place.shown(key, &PRODUCTION), "true  # AGENTAREA_AUTH__OPEN_METRICS (.env)");
    }

    #[test]
    fn production_starts_with_three_addresses_and_one_key() {
        let output = Place::new().run(&["key", "new"], &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find(|line| line.contains("AGENTAREA_AUTH__KEYS")).unwrap();
        let place = shipped(Place::new()).with(".env", line.trim());
        let output = place.run(&["config", "check"], &PRODUCTION[..4]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn secrets_come_from_files_and_never_print() {
        let place = Place::new().with("secret", "redis://user:hunter2@redis:6379\n");
        let variables = [("AGENTAREA_EVENT_BROKER__REDIS__URL_FILE", "secret")];
        let shown = place.shown("event_broker.redis.url", &variables);
        assert!(shown.ends_with("# AGENTAREA_EVENT_BROKER__REDIS__URL_FILE"), "{shown}");
        let output = place.run(&["config", "show"], &variables);
        assert!(!String::from_utf8(output.stdout).unwrap().contains("hunter2"));
        let both = [variables[0], ("REDIS_URL", "redis://x")];
        assert!(place.problems(&both).contains("give only one of the two"));
        let missing = [("AGENTAREA_EVENT_BROKER__REDIS__URL_FILE", "nowhere")];
        assert!(place.problems(&missing).contains("\"nowhere\" cannot be read"));
    }

    #[test]
    fn a_password_of_digits_stays_text() {
        let variables = [
            ("DATABASE_URL", "postgres://u@h/d"),
            ("AGENTAREA_DATABASE__POSTGRES__PASSWORD", "007"),
        ];
        assert!(Place::new().run(&["config", "check"], &variables).status.success());
    }
}

/// With any backends of the build.
#[cfg(feature = "sqlite")]
#[test]
fn production_runs_on_one_process_if_that_is_said_of_each_connection() {
    let allowed = [
        ("ENVIRONMENT", "production"),
        ("AGENTAREA_EVENT_BROKER__BACKEND", "memory"),
        ("AGENTAREA_EVENT_BROKER__ALLOW_EMBEDDED_IN_PRODUCTION", "true"),
        ("AGENTAREA_EXECUTION_SERVICE__BACKEND", "embedded"),
        ("AGENTAREA_EXECUTION_SERVICE__ALLOW_EMBEDDED_IN_PRODUCTION", "true"),
        ("AGENTAREA_DATABASE__BACKEND", "sqlite"),
        ("AGENTAREA_DATABASE__ALLOW_EMBEDDED_IN_PRODUCTION", "true"),
        ("AGENTAREA_AUTH__MODE", "none"),
        ("AGENTAREA_AUTH__ALLOW_NONE_IN_PRODUCTION", "true"),
    ];
    for place in [Place::new(), shipped(Place::new())] {
        let output = place.run(&["config", "check"], &allowed);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report = place.problems(&allowed[..7]);
        assert!(report.contains("mode = \"api_key\" needs at least one key"), "{report}");
    }
}

#[test]
fn the_shipped_files_are_good() {
    for environment in ["development", "test"] {
        let output =
            shipped(Place::new()).run(&["config", "check"], &[("ENVIRONMENT", environment)]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[cfg(not(feature = "redis"))]
#[test]
fn a_backend_that_is_compiled_out_is_named_with_its_feature() {
    for variables in
        [[("REDIS_URL", "redis://redis:6379")], [("AGENTAREA_EVENT_BROKER__BACKEND", "redis")]]
    {
        let report = Place::new().problems(&variables);
        assert!(report.contains("\"redis\" is not part of this build"), "{report}");
        assert!(report.contains("--features redis"), "{report}");
    }
}

#[test]
fn variables_of_kubernetes_service_links_are_ignored() {
    let variables = [
        ("AGENTAREA_API_SERVICE_HOST", "10.0.0.1"),
        ("AGENTAREA_API_SERVICE_PORT", "8000"),
        ("AGENTAREA_API_PORT", "tcp://10.0.0.1:8000"),
        ("AGENTAREA_API_PORT_8000_TCP_ADDR", "10.0.0.1"),
    ];
    assert!(Place::new().run(&["config", "check"], &variables).status.success());
}

#[test]
fn what_cargo_sets_for_the_programs_that_it_runs_is_no_configuration() {
    let place = Place::new();
    let output = Command::new(env!("CARGO_BIN_EXE_agentarea-api"))
        .args(["config", "check"])
        .current_dir(place.0.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_collector_needs_a_build_that_can_send_to_it() {
    let variables = [("AGENTAREA_TELEMETRY__OTLP_ENDPOINT", "http://collector:4317")];
    if cfg!(feature = "otel") {
        assert!(Place::new().run(&["config", "check"], &variables).status.success());
    } else {
        assert!(Place::new().problems(&variables).contains("cargo feature otel"));
    }
}
