//! The tables, in the types that both databases have.

diesel::table! {
    schema_info (id) {
        id -> Integer,
        oldest_program -> Text,
    }
}

diesel::table! {
    instances (id) {
        id -> Text,
        seen_at -> BigInt,
    }
}

diesel::table! {
    executions (id) {
        id -> Text,
        workflow -> Text,
        input -> Text,
        status -> Text,
        result -> Nullable<Text>,
        error -> Nullable<Text>,
        created_at -> BigInt,
        started_at -> Nullable<BigInt>,
        finished_at -> Nullable<BigInt>,
        confirmed_at -> Nullable<BigInt>,
        backend -> Text,
        request_id -> Text,
        timeout_ms -> Nullable<BigInt>,
        definition -> Text,
        traceparent -> Nullable<Text>,
        owner -> Nullable<Text>,
        claimed_until -> BigInt,
        fence -> BigInt,
        tried_at -> Nullable<BigInt>,
        refusals -> Integer,
        ending -> Nullable<Text>,
        rejected_at -> Nullable<BigInt>,
        redrives -> Integer,
    }
}

diesel::table! {
    idempotency_keys (scope, idempotency_key) {
        scope -> Text,
        idempotency_key -> Text,
        body_hash -> Text,
        execution_id -> Text,
        answer -> Nullable<Text>,
        busy_until -> BigInt,
        expires_at -> BigInt,
    }
}

diesel::table! {
    runs (id) {
        id -> Text,
        request_id -> Text,
        definition -> Text,
        input -> Text,
        status -> Text,
        result -> Nullable<Text>,
        error -> Nullable<Text>,
        created_at -> BigInt,
        deadline_at -> Nullable<BigInt>,
        finished_at -> Nullable<BigInt>,
        tries -> Integer,
        next_try_at -> BigInt,
        owner -> Nullable<Text>,
        claimed_until -> BigInt,
        fence -> BigInt,
        cancel_requested -> Bool,
        traceparent -> Nullable<Text>,
    }
}

diesel::table! {
    outbox (seq) {
        seq -> BigInt,
        lane -> Integer,
        source -> Text,
        event_id -> Text,
        content_hash -> Text,
        event -> Text,
        state -> Text,
        created_at -> BigInt,
        delivered_at -> Nullable<BigInt>,
        refusals -> Integer,
        error -> Nullable<Text>,
        position -> Nullable<Text>,
        slot -> Nullable<Integer>,
        lifecycle -> Bool,
    }
}

diesel::table! {
    lanes (lane) {
        lane -> Integer,
        owner -> Nullable<Text>,
        claimed_until -> BigInt,
        fence -> BigInt,
        of_lanes -> Integer,
    }
}

diesel::table! {
    relays (owner) {
        owner -> Text,
        seen_at -> BigInt,
        knows_slots -> Bool,
    }
}

diesel::table! {
    outbox_settings (id) {
        id -> Integer,
        lanes -> Integer,
    }
}

diesel::table! {
    outbox_counts (id) {
        id -> Integer,
        begun_at -> BigInt,
        ended_at -> BigInt,
        events -> BigInt,
        lifecycle_events -> BigInt,
        oldest_event_at -> Nullable<BigInt>,
        dead_events -> BigInt,
        executions -> BigInt,
        oldest_execution_at -> Nullable<BigInt>,
        dead_executions -> BigInt,
    }
}

diesel::table! {
    roles (name) {
        name -> Text,
        owner -> Text,
        claimed_until -> BigInt,
    }
}
