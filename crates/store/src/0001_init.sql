-- Version 1. Times are Unix milliseconds. Ids are minted by the callers. The text of messages and
-- replies is private and stands nowhere else; its salt lets the log's digest be checked against it.

CREATE TABLE chats (
    channel  TEXT NOT NULL,
    chat     TEXT NOT NULL,
    first_ms INTEGER NOT NULL,
    last_ms  INTEGER NOT NULL,
    PRIMARY KEY (channel, chat)
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    id             TEXT NOT NULL PRIMARY KEY,
    agent          TEXT NOT NULL,
    channel        TEXT NOT NULL,
    chat           TEXT NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('open', 'archived')),
    created_ms     INTEGER NOT NULL,
    last_active_ms INTEGER NOT NULL,
    workspace      TEXT NOT NULL
) STRICT;

-- One open session per agent and chat, whoever asks at the same moment.
CREATE UNIQUE INDEX sessions_open ON sessions (agent, channel, chat) WHERE state = 'open';

CREATE TABLE inbox (
    seq           INTEGER PRIMARY KEY,
    id            TEXT NOT NULL UNIQUE,
    channel       TEXT NOT NULL,
    platform_id   TEXT NOT NULL,
    chat          TEXT NOT NULL,
    user          TEXT NOT NULL,
    text          TEXT NOT NULL,
    salt          BLOB NOT NULL,
    received_ms   INTEGER NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
    attempts      INTEGER NOT NULL DEFAULT 0,
    not_before_ms INTEGER NOT NULL DEFAULT 0,
    session       TEXT REFERENCES sessions (id),
    UNIQUE (channel, platform_id),
    FOREIGN KEY (channel, chat) REFERENCES chats (channel, chat)
) STRICT;

CREATE INDEX inbox_queue ON inbox (session, seq) WHERE state = 'queued';

CREATE TABLE turns (
    id            TEXT NOT NULL PRIMARY KEY,
    session       TEXT NOT NULL REFERENCES sessions (id),
    message       TEXT NOT NULL REFERENCES inbox (id),
    state         TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed', 'lost')),
    started_ms    INTEGER NOT NULL,
    finished_ms   INTEGER,
    outcome       TEXT,
    input_tokens  INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    owner_boot    TEXT NOT NULL,
    owner_pid     INTEGER NOT NULL,
    owner_start   INTEGER NOT NULL
) STRICT;

-- One turn at a time in a session, whoever asks at the same moment.
CREATE UNIQUE INDEX turns_running ON turns (session) WHERE state = 'running';
CREATE INDEX turns_session ON turns (session, started_ms);

CREATE TABLE outbox (
    seq             INTEGER PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    session         TEXT NOT NULL REFERENCES sessions (id),
    turn            TEXT NOT NULL REFERENCES turns (id),
    channel         TEXT NOT NULL,
    chat            TEXT NOT NULL,
    text            TEXT NOT NULL,
    salt            BLOB NOT NULL,
    created_ms      INTEGER NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('pending', 'sent', 'failed')),
    idempotency_key TEXT NOT NULL UNIQUE,
    attempts        INTEGER NOT NULL DEFAULT 0,
    error           TEXT
) STRICT;

CREATE INDEX outbox_pending ON outbox (channel, seq) WHERE state = 'pending';
CREATE INDEX outbox_turn ON outbox (turn);
