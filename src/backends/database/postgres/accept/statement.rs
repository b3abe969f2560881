//! The statement that accepts many requests.

use std::slice;

use diesel::{
    QueryResult,
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    sql_types::{BigInt, Integer, Nullable, Text},
};

use super::{
    super::{
        super::{
            Admission, Claim, KeyUse, NewRecord, Work,
            rows::{json, micros, millis},
        },
        columns::rows,
        dialect::NOW,
        new_events::{INSERT, NewEvents},
    },
    number,
};
use crate::{error::Error, model::executions::Execution};

/// An admission that is not stored: its index, the outcome, the stored answer, the refused event.
pub(super) type Exception = (i32, String, Option<String>, Option<i32>);

/// The outcomes of admissions that are not stored.
pub(super) mod outcomes {
    pub(in super::super) const ANSWERED: &str = "answered";
    pub(in super::super) const BUSY: &str = "busy";
    pub(in super::super) const KEY_REUSED: &str = "key reused";
    pub(in super::super) const ID_TAKEN: &str = "id taken";
    pub(in super::super) const EVENT_TAKEN: &str = "event taken";
    /// Another process used the key at the same time.
    pub(in super::super) const RACED: &str = "raced";
}

rows! {
    #[doc = "The keys of the requests."]
    Keys of NewKey {
        admission: i32 as Integer,
        scope: &'a str as Text,
        idempotency_key: &'a str as Text,
        body_hash: &'a str as Text,
        earlier_hash: Option<&'a str> as Nullable<Text>,
        answer: &'a str as Text,
        keep_for: i64 as BigInt,
    }
}

rows! {
    #[doc = "The executions of the requests."]
    Executions of NewExecution {
        admission: i32 as Integer,
        id: &'a str as Text,
        workflow: &'a str as Text,
        input: &'a str as Text,
        created_at: i64 as BigInt,
        backend: &'a str as Text,
        request_id: &'a str as Text,
        timeout_ms: Option<i64> as Nullable<BigInt>,
        definition: String as Text,
        traceparent: Option<&'a str> as Nullable<Text>,
        owner: Option<&'a str> as Nullable<Text>,
        lease: i64 as BigInt,
    }
}

/// Accepts admissions. Its rows are the [`Exception`]s.
#[derive(Default)]
pub(super) struct AcceptAll<'a> {
    keys: Keys<'a>,
    executions: Executions<'a>,
    events: NewEvents<'a>,
}

impl<'a> AcceptAll<'a> {
    pub(super) fn new(admissions: &[(usize, &'a Admission)]) -> Result<Self, Error> {
        let mut all = Self::default();
        for (admission, Admission { work, key }) in admissions {
            let admission = number(*admission);
            if let Some(key) = key {
                all.keys.push(NewKey::new(admission, key));
            }
            match work {
                Work::Events(events) => all.events.add(admission, events),
                Work::Execution(new) => {
                    let NewRecord { execution, announcement, claim } = &**new;
                    let execution = NewExecution::new(admission, execution, claim.as_ref())?;
                    all.executions.push(execution);
                    all.events.add(admission, slice::from_ref(announcement));
                }
            }
        }
        Ok(all)
    }
}

impl<'a> NewKey<'a> {
    fn new(admission: i32, new: &'a KeyUse) -> Self {
        Self {
            admission,
            scope: &new.scope,
            idempotency_key: &new.key,
            body_hash: new.fingerprint.as_str(),
            earlier_hash: new.fingerprint.earlier(),
            answer: &new.answer,
            keep_for: micros(new.keep_for),
        }
    }
}

impl<'a> NewExecution<'a> {
    fn new(admission: i32, new: &'a Execution, claim: Option<&'a Claim>) -> Result<Self, Error> {
        Ok(Self {
            admission,
            id: &new.id,
            workflow: &new.workflow,
            input: new.input.text(),
            created_at: new.created_at.as_microsecond(),
            backend: &new.backend,
            request_id: &new.request_id,
            timeout_ms: new.timeout.map(millis),
            definition: json(&new.definition)?,
            traceparent: new.traceparent.as_deref(),
            owner: claim.map(|claim| &*claim.owner),
            lease: claim.map_or(0, |claim| micros(claim.lease)),
        })
    }
}

impl QueryFragment<Pg> for AcceptAll<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("WITH clock AS MATERIALIZED (SELECT ");
        out.push_sql(NOW);
        out.push_sql(" AS now), new_key AS MATERIALIZED (SELECT new.*, now FROM clock, ");
        self.keys.walk(&mut out)?;
        out.push_sql("), new_execution AS MATERIALIZED (SELECT new.*, now FROM clock, ");
        self.executions.walk(&mut out)?;
        out.push_sql("), new_event AS MATERIALIZED (SELECT new.*, now FROM clock, ");
        self.events.walk(&mut out)?;
        out.push_sql("), ");
        for part in [KNOWN, REFUSED, STORED_KEYS, STORED_EXECUTIONS, INSERT, STORED_EVENTS] {
            out.push_sql(part);
        }
        Ok(())
    }
}

impl QueryId for AcceptAll<'_> {
    type QueryId = AcceptAll<'static>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Query for AcceptAll<'_> {
    type SqlType = (Integer, Text, Nullable<Text>, Nullable<Integer>);
}

/// Earlier uses of the keys, holders of the ids, and stored events. `OFFSET 0` looks each one up by
/// its index, whatever the planner believes about the sizes of the tables.
const KNOWN: &str = "\
    used AS (SELECT admission, used.answer, CASE \
        WHEN used.body_hash <> new.body_hash AND used.body_hash IS DISTINCT FROM earlier_hash \
            THEN 'key reused' \
        WHEN used.answer IS NULL THEN 'busy' \
        ELSE 'answered' END AS outcome \
        FROM new_key AS new, \
        LATERAL (SELECT body_hash, answer, expires_at FROM idempotency_keys \
            WHERE scope = new.scope AND idempotency_key = new.idempotency_key OFFSET 0) AS used \
        WHERE used.expires_at > now), \
    holder AS (SELECT admission, holder.request_id = new.request_id AS same \
        FROM new_execution AS new, \
        LATERAL (SELECT request_id FROM executions WHERE id = new.id OFFSET 0) AS holder), \
    known AS (SELECT item AS admission, place, known.content_hash = new.content_hash \
            OR known.content_hash IS NOT DISTINCT FROM earlier_hash AS same \
        FROM new_event AS new, \
        LATERAL (SELECT content_hash FROM outbox \
            WHERE source = new.source AND event_id = new.event_id OFFSET 0) AS known), ";

/// The first rank of an admission decides.
const REFUSED: &str = "\
    refused AS (\
        SELECT admission, 1 AS rank, outcome, answer, NULL::integer AS place FROM used \
        UNION ALL SELECT admission, 2, 'id taken', NULL, NULL FROM holder WHERE NOT same \
        UNION ALL SELECT admission, 2, 'event taken', NULL, min(place) FROM known WHERE NOT same \
            GROUP BY admission), ";

/// Waits for a concurrent transaction that uses a key, and leaves the key to it. Sorted, so that two
/// processes do not wait for each other.
const STORED_KEYS: &str = "\
    stored_key AS (INSERT INTO idempotency_keys \
        (scope, idempotency_key, body_hash, execution_id, answer, busy_until, expires_at) \
        SELECT scope, idempotency_key, body_hash, '', answer, 0, now + keep_for FROM new_key \
        WHERE admission NOT IN (SELECT admission FROM refused) \
        ORDER BY scope, idempotency_key \
        ON CONFLICT (scope, idempotency_key) DO UPDATE SET body_hash = excluded.body_hash, \
            execution_id = '', answer = excluded.answer, busy_until = 0, \
            expires_at = excluded.expires_at \
        WHERE idempotency_keys.expires_at <= (SELECT now FROM clock) \
        RETURNING scope, idempotency_key), \
    raced AS (SELECT admission FROM new_key \
        WHERE admission NOT IN (SELECT admission FROM refused) \
        AND (scope, idempotency_key) NOT IN (SELECT scope, idempotency_key FROM stored_key)), \
    barred AS (SELECT admission FROM refused UNION ALL SELECT admission FROM raced), ";

/// Work that another process stores at the same time fails the statement, which then is repeated.
const STORED_EXECUTIONS: &str = "\
    stored_execution AS (INSERT INTO executions \
        (id, workflow, input, status, created_at, backend, request_id, timeout_ms, definition, \
        traceparent, owner, claimed_until, fence, tried_at, refusals) \
        SELECT id, workflow, input, 'accepted', created_at, backend, request_id, timeout_ms, \
            definition, traceparent, owner, \
            CASE WHEN owner IS NULL THEN 0 ELSE now + lease END, \
            CASE WHEN owner IS NULL THEN 0 ELSE 1 END, \
            CASE WHEN owner IS NULL THEN NULL ELSE now END, 0 \
        FROM new_execution \
        WHERE admission NOT IN (SELECT admission FROM barred) \
        AND admission NOT IN (SELECT admission FROM holder)), \
    stored_event AS (";

/// The sequence numbers the events in the order of acceptance.
const STORED_EVENTS: &str = "\
    new_event \
        WHERE item NOT IN (SELECT admission FROM barred) \
        AND (item, place) NOT IN (SELECT admission, place FROM known) \
        ORDER BY item, place) \
    SELECT admission, outcome, answer, place FROM (\
        SELECT * FROM refused UNION ALL SELECT admission, 3, 'raced', NULL, NULL FROM raced\
    ) AS exceptions ORDER BY admission, rank";
