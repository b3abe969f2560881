-- Accepted events, until the broker has them and for a while after.
CREATE TABLE outbox (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lane INTEGER NOT NULL,
    source TEXT NOT NULL,
    event_id TEXT NOT NULL,
    -- Of the event as the client sent it.
    content_hash TEXT NOT NULL,
    event TEXT NOT NULL,
    -- pending, delivered or dead.
    state TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    delivered_at BIGINT,
    refusals INTEGER NOT NULL,
    error TEXT,
    UNIQUE (source, event_id)
);
CREATE INDEX outbox_pending ON outbox (seq) WHERE state = 'pending';
CREATE INDEX outbox_delivered ON outbox (delivered_at, seq) WHERE state = 'delivered';
CREATE INDEX outbox_dead ON outbox (seq) WHERE state = 'dead';

-- Events of one subject are in one lane; one process holds a lane at a time.
CREATE TABLE lanes (
    lane INTEGER PRIMARY KEY,
    owner TEXT,
    claimed_until BIGINT NOT NULL,
    fence BIGINT NOT NULL
);
INSERT INTO lanes (lane, owner, claimed_until, fence) VALUES
    (0, NULL, 0, 0), (1, NULL, 0, 0), (2, NULL, 0, 0), (3, NULL, 0, 0),
    (4, NULL, 0, 0), (5, NULL, 0, 0), (6, NULL, 0, 0), (7, NULL, 0, 0),
    (8, NULL, 0, 0), (9, NULL, 0, 0), (10, NULL, 0, 0), (11, NULL, 0, 0),
    (12, NULL, 0, 0), (13, NULL, 0, 0), (14, NULL, 0, 0), (15, NULL, 0, 0);

-- The processes that share the lanes.
CREATE TABLE relays (
    owner TEXT PRIMARY KEY,
    seen_at BIGINT NOT NULL
);
