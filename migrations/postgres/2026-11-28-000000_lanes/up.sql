-- The slot of an event, by which it finds its lane whatever the number of lanes. Rows that the
-- program before this migration writes have none, but a lane of sixteen, which is slot modulo 16.
ALTER TABLE outbox ADD COLUMN slot INTEGER;
CREATE INDEX outbox_slot ON outbox (slot, seq) WHERE state = 'delivered';
CREATE INDEX outbox_without_slot ON outbox (state, seq) WHERE slot IS NULL;

-- The number of lanes, the same in all rows of the table.
ALTER TABLE lanes ADD COLUMN of_lanes INTEGER NOT NULL DEFAULT 16;
-- False for the program before this migration.
ALTER TABLE relays ADD COLUMN knows_slots BOOLEAN NOT NULL DEFAULT FALSE;

-- Settings of all processes that share the outbox: the number of lanes that was configured last.
CREATE TABLE outbox_settings (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    lanes INTEGER NOT NULL
);
INSERT INTO outbox_settings (id, lanes) VALUES (1, 16);

-- Events about executions, which have a reserve of their own. The program before this migration
-- does not tell them apart.
ALTER TABLE outbox ADD COLUMN lifecycle BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX outbox_lifecycle ON outbox (seq) WHERE state = 'pending' AND lifecycle;

-- The work that waits, as one process counted it for all.
CREATE TABLE outbox_counts (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    begun_at BIGINT NOT NULL,
    ended_at BIGINT NOT NULL,
    events BIGINT NOT NULL,
    lifecycle_events BIGINT NOT NULL,
    oldest_event_at BIGINT,
    dead_events BIGINT NOT NULL,
    executions BIGINT NOT NULL,
    oldest_execution_at BIGINT,
    dead_executions BIGINT NOT NULL
);
