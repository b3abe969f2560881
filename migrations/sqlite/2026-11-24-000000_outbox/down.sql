DROP TABLE relays;
DROP TABLE lanes;
DROP TABLE outbox;
