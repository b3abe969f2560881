DROP INDEX outbox_replay;
DROP INDEX outbox_lane;
ALTER TABLE outbox DROP COLUMN position;
