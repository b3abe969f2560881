-- Where the broker put the event, by which a loss of its data is found.
ALTER TABLE outbox ADD COLUMN position TEXT;
CREATE INDEX outbox_lane ON outbox (lane, seq) WHERE state = 'delivered';
CREATE INDEX outbox_replay ON outbox (seq) WHERE state = 'delivered';
