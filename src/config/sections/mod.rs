//! The sections of the configuration: one file each, with its keys, its defaults and its checks.
//!
//! The list in this file is the only one. The macro generates [`Config`], its defaults, its reader
//! and its checks from it; the schema comes from [`Config`]; the default file, the reference and
//! the comparison of a reload come from the schema and the values. So a declared section is always
//! read.

mod auth;
mod connection;
mod event_stream;
mod executions;
mod features;
mod health;
mod idempotency;
mod outbox;
mod policies;
mod server;
mod telemetry;
mod workflows;

use std::collections::BTreeMap;

use figment::value::Value;
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

pub use self::{
    auth::{ApiKey, Auth, AuthMode, Scope},
    connection::{Connection, Pool, Probe, Startup},
    event_stream::EventStream,
    executions::Executions,
    features::Features,
    health::{Details, Health, HealthHttpStatus},
    idempotency::Idempotency,
    outbox::Outbox,
    policies::{CircuitBreaker, Concurrency, Jitter, Retry, RetryBudget, Timeout},
    server::{Server, ServerTls},
    telemetry::{LogFormat, LogRotation, Telemetry},
    workflows::{Kind, WorkflowConfig},
};
use super::{
    problem::{Problems, SectionProblems},
    sources::DEVELOPMENT,
};

/// A section. Its path is its name in the list, because one type can serve several sections.
pub(super) trait ConfigSection: Serialize + DeserializeOwned + JsonSchema {
    /// Reports what the schema cannot express. Keys are relative to the section.
    fn validate(&self, _problems: &mut SectionProblems<'_, '_>) {}
}

/// Declares [`Config`] and all code that covers every section.
macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident: $section:ty = $default:expr;)+) => {
        /// The checked configuration.
        #[derive(Clone, Debug, Serialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct Config {
            /// The value of `ENVIRONMENT`.
            #[serde(skip)]
            pub environment: String,
            $($(#[$doc])* pub $name: $section,)+
        }

        impl Default for Config {
            fn default() -> Self {
                Self { environment: DEVELOPMENT.to_owned(), $($name: $default,)+ }
            }
        }

        impl Config {
            /// Reads every section. A section that its type refuses is added to `unreadable` and
            /// keeps its defaults.
            pub(super) fn read(root: &Value, unreadable: &mut Vec<&'static str>) -> Self {
                let mut config = Self::default();
                $(match read_section(root, stringify!($name)) {
                    Some(Ok(section)) => config.$name = section,
                    Some(Err(())) => unreadable.push(stringify!($name)),
                    None => {}
                })+
                config
            }

            /// Checks every section.
            pub(super) fn validate(&self, problems: &mut Problems<'_>) {
                $(self.$name.validate(&mut problems.section(stringify!($name)));)+
            }
        }
    };
}

sections! {
    /// The HTTP server.
    server: Server = Server::default();
    /// Run-time feature flags.
    features: Features = Features::default();
    /// The connection that carries events.
    event_broker: Connection = Connection::event_broker();
    /// The connection that runs executions.
    execution_service: Connection = Connection::execution_service();
    /// The connection that stores accepted work.
    database: Connection = Connection::database();
    /// The workflows that can be executed, by name.
    workflows: BTreeMap<String, WorkflowConfig> = workflows::compiled();
    /// Accepted events, until the broker has them.
    outbox: Outbox = Outbox::default();
    /// Server-sent events.
    event_stream: EventStream = EventStream::default();
    /// `Idempotency-Key`.
    idempotency: Idempotency = Idempotency::default();
    /// Executions.
    executions: Executions = Executions::default();
    /// `/health`, `/livez`, `/readyz`.
    health: Health = Health::default();
    /// Authentication.
    auth: Auth = Auth::default();
    /// Logs.
    telemetry: Telemetry = Telemetry::default();
}

/// Reads one section of the tree as its type. The reader's message can repeat values, so it is
/// dropped.
fn read_section<T: ConfigSection>(root: &Value, name: &str) -> Option<Result<T, ()>> {
    let section = root.find_ref(name)?;
    Some(section.deserialize().map_err(|_| ()))
}

impl Config {
    /// True when `ENVIRONMENT` is `production`.
    #[must_use]
    pub fn is_production(&self) -> bool {
        self.environment == super::production::PRODUCTION
    }

    /// The three connections by name, in the order in which they are established.
    #[must_use]
    pub fn connections(&self) -> [(&'static str, &Connection); 3] {
        [
            ("database", &self.database),
            ("event_broker", &self.event_broker),
            ("execution_service", &self.execution_service),
        ]
    }

    /// The same three, mutable.
    pub(super) fn connections_mut(&mut self) -> [(&'static str, &mut Connection); 3] {
        [
            ("database", &mut self.database),
            ("event_broker", &mut self.event_broker),
            ("execution_service", &mut self.execution_service),
        ]
    }
}

/// The problems that a section reports, for the tests of the sections.
#[cfg(test)]
fn problems_of(path: &str, section: &impl ConfigSection) -> Vec<String> {
    let (tree, unclear) = (super::tree::Tree::merge([]), super::problem::Unclear::default());
    let mut problems = Problems::new(&tree, &unclear);
    section.validate(&mut problems.section(path));
    problems.list.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every section with a value that is not its default is read as it is written.
    #[test]
    fn every_declared_section_is_read() {
        let written = serde_json::json!({
            "server": {"port": 1},
            "features": {"docs": false},
            "event_broker": {"backend": "a"},
            "execution_service": {"backend": "b"},
            "database": {"backend": "c"},
            "workflows": {"call": {}},
            "outbox": {"batch": 1},
            "event_stream": {"max_clients": 1},
            "idempotency": {"retention": "2d"},
            "executions": {"max_wait": "0s"},
            "health": {"details": "never"},
            "auth": {"open_metrics": false},
            "telemetry": {"log_format": "json"},
        });
        let mut unreadable = Vec::new();
        let read = Config::read(&Value::serialize(&written).unwrap(), &mut unreadable);
        assert_eq!(unreadable, [""; 0]);
        let (read, usual) =
            (serde_json::to_value(read).unwrap(), serde_json::to_value(Config::default()).unwrap());
        let sections = usual.as_object().unwrap();
        assert_eq!(sections.len(), written.as_object().unwrap().len(), "a section is missing here");
        for name in sections.keys() {
            assert_ne!(read[name], usual[name], "{name} is declared and not read");
        }
    }

    #[test]
    fn a_section_that_cannot_be_read_is_named_and_stops_no_other() {
        let written = serde_json::json!({"server": {"port": "x"}, "outbox": {"batch": 7}});
        let mut unreadable = Vec::new();
        let config = Config::read(&Value::serialize(written).unwrap(), &mut unreadable);
        assert_eq!((unreadable, config.outbox.batch), (vec!["server"], 7));
    }
}
