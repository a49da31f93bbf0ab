-- What has been done already: the keys of plungepool.once(), and the records of Powertools' Idempotency. In a schema of their
-- own that the package names in every statement, so that no search path leads elsewhere.
CREATE SCHEMA plungepool;

CREATE TABLE plungepool.once_keys (
    key text PRIMARY KEY,
    recorded_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);

CREATE INDEX once_keys_by_expiry ON plungepool.once_keys (expires_at);

-- Moments are Powertools' own: seconds since the epoch, and milliseconds for what is in progress.
CREATE TABLE plungepool.idempotency (
    id text PRIMARY KEY,
    status text NOT NULL,
    expires_at bigint NOT NULL,
    in_progress_until bigint,
    response_data text,
    payload_hash text
);

CREATE INDEX idempotency_by_expiry ON plungepool.idempotency (expires_at);
