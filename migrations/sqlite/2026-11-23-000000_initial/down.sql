DROP TABLE runs;
DROP TABLE idempotency_keys;
DROP TABLE executions;
DROP TABLE instances;
DROP TABLE schema_info;
