ALTER TABLE executions DROP COLUMN traceparent;
ALTER TABLE runs DROP COLUMN traceparent;
