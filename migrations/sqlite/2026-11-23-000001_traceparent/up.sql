-- The trace of the request that asked for an execution, for what runs it later. Rows of before, and
-- those that an earlier program writes, have none.
ALTER TABLE executions ADD COLUMN traceparent TEXT;
ALTER TABLE runs ADD COLUMN traceparent TEXT;
