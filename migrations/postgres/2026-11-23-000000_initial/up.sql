-- The oldest program version that may use this schema.
CREATE TABLE schema_info (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    oldest_program TEXT NOT NULL
);
INSERT INTO schema_info (id, oldest_program) VALUES (1, '0.1.0');

-- One row a process; the probe writes it to prove that the database accepts writes.
CREATE TABLE instances (
    id TEXT PRIMARY KEY,
    seen_at BIGINT NOT NULL
);

-- Times are microseconds since the epoch.
CREATE TABLE executions (
    id TEXT PRIMARY KEY,
    workflow TEXT NOT NULL,
    input TEXT NOT NULL,
    status TEXT NOT NULL,
    result TEXT,
    error TEXT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT,
    confirmed_at BIGINT,
    backend TEXT NOT NULL,
    request_id TEXT NOT NULL,
    timeout_ms BIGINT,
    definition TEXT NOT NULL
);
CREATE INDEX executions_newest ON executions (created_at, id);
CREATE INDEX executions_status ON executions (status, created_at, id);
CREATE INDEX executions_workflow ON executions (workflow, created_at, id);
CREATE INDEX executions_unconfirmed ON executions (backend, confirmed_at) WHERE status = 'running';

CREATE TABLE idempotency_keys (
    scope TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    body_hash TEXT NOT NULL,
    execution_id TEXT NOT NULL,
    answer TEXT,
    busy_until BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (scope, idempotency_key)
);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);

-- Runs of the embedded execution service.
CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    request_id TEXT NOT NULL,
    definition TEXT NOT NULL,
    input TEXT NOT NULL,
    status TEXT NOT NULL,
    result TEXT,
    error TEXT,
    created_at BIGINT NOT NULL,
    deadline_at BIGINT,
    finished_at BIGINT,
    tries INTEGER NOT NULL,
    next_try_at BIGINT NOT NULL,
    owner TEXT,
    claimed_until BIGINT NOT NULL,
    fence BIGINT NOT NULL,
    cancel_requested BOOLEAN NOT NULL
);
CREATE INDEX runs_claimable ON runs (claimed_until, created_at) WHERE status = 'running';
CREATE INDEX runs_ended ON runs (finished_at, id);
