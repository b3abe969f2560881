-- How often an operator had the execution started again, so that each change is announced by an
-- event of its own.
ALTER TABLE executions ADD COLUMN redrives INTEGER NOT NULL DEFAULT 0;
