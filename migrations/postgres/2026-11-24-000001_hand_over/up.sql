-- The hand-over of accepted executions. The program before this migration accepts and hands over
-- without these columns: what it accepts counts as tried, at a time nobody knows.
ALTER TABLE executions ADD COLUMN owner TEXT;
ALTER TABLE executions ADD COLUMN claimed_until BIGINT NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN fence BIGINT NOT NULL DEFAULT 0;
-- The first try that may have reached the backend.
ALTER TABLE executions ADD COLUMN tried_at BIGINT DEFAULT 0;
ALTER TABLE executions ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;
-- How it is to be ended, once it is handed over.
ALTER TABLE executions ADD COLUMN ending TEXT;
-- When it became a dead letter.
ALTER TABLE executions ADD COLUMN rejected_at BIGINT;
CREATE INDEX executions_waiting ON executions (created_at) WHERE status = 'accepted';
CREATE INDEX executions_ending ON executions (id) WHERE ending IS NOT NULL;
CREATE INDEX executions_rejected ON executions (rejected_at, id) WHERE rejected_at IS NOT NULL;
CREATE INDEX executions_ended ON executions (finished_at) WHERE finished_at IS NOT NULL;

-- Work that one process does for all.
CREATE TABLE roles (
    name TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    claimed_until BIGINT NOT NULL
);
