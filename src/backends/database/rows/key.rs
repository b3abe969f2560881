//! Rows of idempotency keys.

use diesel::prelude::*;

use super::{
    super::{KeyUse, schema},
    micros,
};

#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = schema::idempotency_keys)]
pub(in super::super) struct KeyRow {
    scope: String,
    idempotency_key: String,
    pub(in super::super) body_hash: String,
    execution_id: String,
    pub(in super::super) answer: Option<String>,
    busy_until: i64,
    expires_at: i64,
}

impl KeyRow {
    pub(in super::super) fn primary_key(&self) -> (&str, &str) {
        (&self.scope, &self.idempotency_key)
    }

    pub(in super::super) fn new(key: &KeyUse, now: i64) -> Self {
        Self {
            scope: key.scope.clone(),
            idempotency_key: key.key.clone(),
            body_hash: key.fingerprint.as_str().to_owned(),
            // Columns that the previous version needs beside the answer.
            execution_id: String::new(),
            answer: Some(key.answer.clone()),
            busy_until: 0,
            expires_at: now.saturating_add(micros(key.keep_for)),
        }
    }
}
