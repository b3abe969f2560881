ALTER TABLE executions DROP COLUMN redrives;
