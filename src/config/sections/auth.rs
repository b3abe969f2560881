//! `[auth]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use super::ConfigSection;
use crate::config::{given::given, problem::SectionProblems};

/// A scope of an API key.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    IntoStaticStr,
    VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[schemars(inline)]
pub enum Scope {
    /// Read executions, connections and the event stream.
    Read,
    /// Publish events, start and steer executions.
    Write,
    /// Use the operator's routes.
    Operate,
}

impl Scope {
    /// Stable name, as it appears in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// How callers prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum AuthMode {
    /// Authentication is off.
    None,
    /// With `Authorization: Bearer KEY`.
    ApiKey,
}

/// Authentication of API callers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// `none`: no authentication is required. `api_key`: callers send `Authorization: Bearer KEY`.
    pub mode: AuthMode,
    /// The keys that are accepted, as `agentarea-api key new` prints them.
    pub keys: Vec<ApiKey>,
    /// Whether `/metrics` is open to everyone, or needs the scope `read`.
    pub open_metrics: bool,
    /// Allows `mode = "none"` when ENVIRONMENT is production.
    pub allow_none_in_production: bool,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            mode: AuthMode::None,
            keys: Vec::new(),
            open_metrics: true,
            allow_none_in_production: false,
        }
    }
}

/// One API key; only its hash is kept.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct ApiKey {
    /// Names the holder in logs. Keys with the same name share idempotency keys.
    pub name: String,
    /// SHA-256 of the key, 64 hexadecimal digits.
    pub sha256: String,
    /// The scopes of the key: any of `read`, `write`, `operate`.
    pub scopes: Vec<Scope>,
}

impl ConfigSection for Auth {
    fn validate(&self, problems: &mut SectionProblems<'_, '_>) {
        for (index, key) in self.keys.iter().enumerate() {
            if key.sha256.len() != 64 || !key.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                problems.add(
                    &format!("keys.{index}.sha256"),
                    format!(
                        "key {}: sha256 must be 64 hexadecimal digits; `agentarea-api key new` prints a whole line",
                        given(&key.name)
                    ),
                );
            }
        }
        if self.mode == AuthMode::ApiKey && self.keys.is_empty() {
            problems.add_conflict(
                "keys",
                &["mode"],
                "mode = \"api_key\" needs at least one key; `agentarea-api key new` creates one and \
                 prints its line",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sections::problems_of;

    #[test]
    fn keys_are_needed_by_their_mode_and_have_a_hash() {
        assert_eq!(problems_of("auth", &Auth::default()), [""; 0]);
        let without = Auth { mode: AuthMode::ApiKey, ..Auth::default() };
        let told = problems_of("auth", &without);
        assert!(told[0].starts_with("auth.keys: mode = \"api_key\" needs"), "{told:?}");
        let key = |sha256: String| ApiKey { name: "ci".to_owned(), sha256, scopes: Vec::new() };
        let keys = vec![key("a".repeat(64)), key("a".repeat(63)), key("g".repeat(64))];
        let told = problems_of("auth", &Auth { keys, ..without });
        let keys: Vec<&str> = told.iter().filter_map(|told| told.split(": ").next()).collect();
        assert_eq!(keys, ["auth.keys.1.sha256", "auth.keys.2.sha256"]);
    }
}
