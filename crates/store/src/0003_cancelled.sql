-- Version 3. A message may be taken back: state 'cancelled'. A CHECK cannot be altered, so the table
-- is made anew under its name; what refers to it does so by that name. Foreign keys are off here.

CREATE TABLE inbox_3 (
    seq           INTEGER PRIMARY KEY,
    id            TEXT NOT NULL UNIQUE,
    channel       TEXT NOT NULL,
    platform_id   TEXT NOT NULL,
    chat          TEXT NOT NULL,
    user          TEXT NOT NULL,
    text          TEXT NOT NULL,
    salt          BLOB NOT NULL,
    received_ms   INTEGER NOT NULL,
    state         TEXT NOT NULL
                  CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    attempts      INTEGER NOT NULL DEFAULT 0,
    not_before_ms INTEGER NOT NULL DEFAULT 0,
    session       TEXT REFERENCES sessions (id),
    boot          TEXT,
    UNIQUE (channel, platform_id),
    FOREIGN KEY (channel, chat) REFERENCES chats (channel, chat)
) STRICT;

INSERT INTO inbox_3 (seq, id, channel, platform_id, chat, user, text, salt, received_ms, state,
                     attempts, not_before_ms, session, boot)
SELECT seq, id, channel, platform_id, chat, user, text, salt, received_ms, state,
       attempts, not_before_ms, session, boot
FROM inbox;

DROP TABLE inbox;
ALTER TABLE inbox_3 RENAME TO inbox;
CREATE INDEX inbox_queue ON inbox (session, seq) WHERE state = 'queued';
