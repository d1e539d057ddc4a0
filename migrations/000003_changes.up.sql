-- The log of changes by which replicas that remember rows learn that they must forget some, and when keys were used.
-- docs/revocation.md says why each part is as it is.

-- One row for each statement that changed rows which verification reads. The newest 10,000 are kept.
CREATE TABLE changes (
    position bigint  PRIMARY KEY,
    -- Random. After a failover, the servers before and after it may use a position for different changes.
    entry    uuid    NOT NULL,
    noun     text    NOT NULL, -- the table
    -- Which rows: token_hash of access keys, id of everything else. Null: more than can be named.
    subjects bytea[]
);

-- The newest change. Each change updates this row, and so waits for the one before it to commit: the order of positions is the
-- order of commits.
CREATE TABLE change_head (
    single   int     PRIMARY KEY DEFAULT 1 CHECK (single = 1), -- by an index that is unique the planner knows that there is one row
    position bigint  NOT NULL,
    entry    uuid    NOT NULL,
    lease_ms bigint  NOT NULL DEFAULT 0 -- the longest lease of any replica
) WITH (fillfactor = 10);

INSERT INTO changes (position, entry, noun) VALUES (0, gen_random_uuid(), '');
INSERT INTO change_head (position, entry) SELECT position, entry FROM changes;

-- The processes that answer from memory, and how much of the log each has applied.
CREATE TABLE replicas (
    id           uuid        PRIMARY KEY, -- of the process, made at its start
    seq          bigint      NOT NULL, -- another one with each heartbeat
    lease_ms     bigint      NOT NULL,
    position     bigint      NOT NULL,
    tm_heartbeat timestamptz NOT NULL DEFAULT now() -- for people; nothing is decided by it
) WITH (fillfactor = 10);

CREATE FUNCTION append_change(noun text, subjects bytea[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    fresh uuid := gen_random_uuid();
    head  bigint;
BEGIN
    IF cardinality(subjects) = 0 THEN
        RETURN;
    END IF;
    IF cardinality(subjects) > 1000 THEN
        subjects := NULL;
    END IF;
    UPDATE change_head SET position = position + 1, entry = fresh WHERE single = 1 RETURNING position INTO head;
    INSERT INTO changes VALUES (head, fresh, noun, subjects);
    DELETE FROM changes WHERE position = head - 10000;
    PERFORM pg_notify('accesskeys_changes', ''); -- a hint
END
$$;

CREATE FUNCTION accesskeys_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM append_change(TG_TABLE_NAME, ARRAY(SELECT token_hash FROM old_rows LIMIT 1001));
    RETURN NULL;
END
$$;

CREATE FUNCTION rows_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM append_change(TG_TABLE_NAME, ARRAY(SELECT uuid_send(id) FROM old_rows LIMIT 1001));
    RETURN NULL;
END
$$;

CREATE FUNCTION table_emptied() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM append_change(TG_TABLE_NAME, NULL);
    RETURN NULL;
END
$$;

-- Triggers, so that a change counts whoever makes it: this program, an older one during an upgrade, a person with psql.
CREATE TRIGGER changed AFTER UPDATE ON accesskeys REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION accesskeys_changed();
CREATE TRIGGER removed AFTER DELETE ON accesskeys REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION accesskeys_changed();
CREATE TRIGGER emptied AFTER TRUNCATE ON accesskeys FOR EACH STATEMENT EXECUTE FUNCTION table_emptied();

CREATE TRIGGER changed AFTER UPDATE ON agents REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION rows_changed();
CREATE TRIGGER removed AFTER DELETE ON agents REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION rows_changed();
CREATE TRIGGER emptied AFTER TRUNCATE ON agents FOR EACH STATEMENT EXECUTE FUNCTION table_emptied();

CREATE TRIGGER changed AFTER UPDATE ON customers REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION rows_changed();
CREATE TRIGGER removed AFTER DELETE ON customers REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION rows_changed();
CREATE TRIGGER emptied AFTER TRUNCATE ON customers FOR EACH STATEMENT EXECUTE FUNCTION table_emptied();

CREATE TRIGGER changed AFTER UPDATE ON service_accounts REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION rows_changed();
CREATE TRIGGER removed AFTER DELETE ON service_accounts REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION rows_changed();
CREATE TRIGGER emptied AFTER TRUNCATE ON service_accounts FOR EACH STATEMENT EXECUTE FUNCTION table_emptied();

CREATE TRIGGER changed AFTER UPDATE ON service_account_keys REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION rows_changed();
CREATE TRIGGER removed AFTER DELETE ON service_account_keys REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION rows_changed();
CREATE TRIGGER emptied AFTER TRUNCATE ON service_account_keys FOR EACH STATEMENT EXECUTE FUNCTION table_emptied();

-- When a key was last used. Not a column of accesskeys: it changes all the time, and there each change would cost a write to
-- every index. No foreign key: that would write to the key's row, too.
CREATE TABLE accesskey_uses (
    accesskey_id uuid        PRIMARY KEY,
    tm_last_used timestamptz NOT NULL
) WITH (fillfactor = 70);
