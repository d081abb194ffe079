-- Version 2. The boot of the machine in which a message was taken: one from an earlier boot may
-- have been begun without its turn reaching the disk.

ALTER TABLE inbox ADD COLUMN boot TEXT;
