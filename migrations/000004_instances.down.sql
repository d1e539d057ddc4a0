-- Back to what servers of before know. Those of now find no table instances, and stop.

DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['accesskeys', 'agents', 'customers', 'service_accounts', 'service_account_keys'] LOOP
        EXECUTE format('DROP TRIGGER changed ON %1$I; DROP TRIGGER removed ON %1$I; DROP TRIGGER applied ON %1$I; DROP TRIGGER emptied ON %1$I', relation);
    END LOOP;
    FOREACH relation IN ARRAY ARRAY['changes', 'change_head', 'instances'] LOOP
        EXECUTE format('DROP TRIGGER guarded ON %1$I; DROP TRIGGER guarded_emptying ON %1$I', relation);
    END LOOP;
END
$$;
LOCK TABLE instances; -- from here on nobody gets, or renews, a lease by it
DROP FUNCTION broken_triggers();
DROP FUNCTION guard_internals();
DROP FUNCTION ensure_logged(text);
DROP FUNCTION log_everything();
DROP FUNCTION log_change();
DROP FUNCTION append_change(text, bytea[], uuid[]);
DROP FUNCTION lock_customers(uuid[]);
DROP FUNCTION admit_accesskey_write(int, uuid, uuid, text[]);
DROP FUNCTION admit_write(int, boolean, int, boolean, uuid, bigint, uuid, uuid, uuid, text[], uuid, bigint, timestamptz, uuid, text[], uuid, timestamptz, uuid, bigint);
ALTER TABLE change_head DROP COLUMN oldest_version;

-- SECURITY: without these columns, a key that a service account made would outlive it, and do what the account may not.
UPDATE accesskeys SET tm_delete = now(), tm_update = now()
WHERE service_account_id IS NOT NULL AND tm_delete = '9999-01-01 00:00:00+00';
DROP INDEX accesskeys_live_of_service_account;
ALTER TABLE accesskeys DROP COLUMN service_account_id, DROP COLUMN created_by_type, DROP COLUMN created_by_id;
ALTER TABLE service_accounts DROP CONSTRAINT service_accounts_customer_id_id_key;

ALTER TABLE service_account_keys RENAME CONSTRAINT service_account_keys_spki_check TO service_account_keys_public_key_check;
ALTER TABLE service_account_keys RENAME COLUMN spki TO public_key;
ALTER TABLE service_accounts RENAME COLUMN description TO detail;
ALTER TABLE accesskeys RENAME COLUMN description TO detail;
ALTER TABLE agents RENAME COLUMN description TO detail;
ALTER TABLE customers RENAME COLUMN description TO detail;
ALTER TABLE accesskeys RENAME CONSTRAINT accesskeys_token_sha256_key TO accesskeys_token_hash_key;
ALTER TABLE accesskeys RENAME COLUMN token_sha256 TO token_hash;

-- The processes that answer from memory, and how much of the log each has applied.
CREATE TABLE replicas (
    id           uuid        PRIMARY KEY, -- of the process, made at its start
    seq          bigint      NOT NULL, -- another one with each heartbeat
    lease_ms     bigint      NOT NULL,
    position     bigint      NOT NULL,
    tm_heartbeat timestamptz NOT NULL DEFAULT now() -- for people; nothing is decided by it
) WITH (fillfactor = 10);
-- SECURITY: a server of now that still runs may answer from memory until its lease ends: revocations wait for that.
INSERT INTO replicas (id, seq, lease_ms, position) SELECT id, seq, lease_ms, position FROM instances;
DROP TABLE instances;

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

DO $$
BEGIN
    IF to_regclass('schema_migrations') IS NULL THEN -- else there is one of somebody else's
        ALTER TABLE accesskeys_migrations RENAME TO schema_migrations;
    END IF;
END
$$;
