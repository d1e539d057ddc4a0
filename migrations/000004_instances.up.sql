-- Writes that end with their caller, a log of changes that nothing gets around, and keys that end with the account that made
-- them. docs/revocation.md says why each part is as it is.
--
-- This step fences servers of older versions: they can't know the rules that begin here. Their heartbeats find no table
-- (replicas becomes instances), their statements find no column (what each of them reads or returns is renamed), and their
-- start finds no schema_migrations and fails. From here on a step says which servers may go on beside it (oldest_version).

DO $$
BEGIN
    IF to_regclass('accesskeys_migrations') IS NULL THEN
        ALTER TABLE schema_migrations RENAME TO accesskeys_migrations;
    END IF;
END
$$;

ALTER TABLE accesskeys RENAME COLUMN token_hash TO token_sha256;
ALTER TABLE accesskeys RENAME CONSTRAINT accesskeys_token_hash_key TO accesskeys_token_sha256_key;
ALTER TABLE customers RENAME COLUMN detail TO description;
ALTER TABLE agents RENAME COLUMN detail TO description;
ALTER TABLE accesskeys RENAME COLUMN detail TO description;
ALTER TABLE service_accounts RENAME COLUMN detail TO description;
ALTER TABLE service_account_keys RENAME COLUMN public_key TO spki;
ALTER TABLE service_account_keys RENAME CONSTRAINT service_account_keys_public_key_check TO service_account_keys_spki_check;

-- Who made a key; null for keys of before, and for those that nobody with a credential made.
ALTER TABLE accesskeys ADD COLUMN created_by_type text CHECK (created_by_type IN ('agent', 'accesskey', 'service_account'));
ALTER TABLE accesskeys ADD COLUMN created_by_id uuid;
ALTER TABLE accesskeys ADD CHECK ((created_by_type IS NULL) = (created_by_id IS NULL));
-- The service account that made the key, itself or by a key that it made. The key ends with it, and has no rights that the
-- account lacks.
ALTER TABLE accesskeys ADD COLUMN service_account_id uuid;
ALTER TABLE service_accounts ADD CONSTRAINT service_accounts_customer_id_id_key UNIQUE (customer_id, id);
ALTER TABLE accesskeys ADD CONSTRAINT accesskeys_service_account_id_fkey
    FOREIGN KEY (customer_id, service_account_id) REFERENCES service_accounts (customer_id, id);
CREATE INDEX accesskeys_live_of_service_account ON accesskeys (service_account_id)
    WHERE service_account_id IS NOT NULL AND tm_delete = '9999-01-01 00:00:00+00';

-- A server that knows no migration as new as this one must stop.
ALTER TABLE change_head ADD COLUMN oldest_version int NOT NULL DEFAULT 4;

-- The servers, and how much of the log each has applied.
LOCK TABLE replicas; -- from here on nobody gets, or renews, a lease by it
CREATE TABLE instances (
    id           uuid        PRIMARY KEY, -- of the process, made at its start
    seq          bigint      NOT NULL, -- another one with each heartbeat
    lease_ms     bigint      NOT NULL,
    -- What it has applied. The number alone would count for another log that has come as far.
    position     bigint      NOT NULL,
    entry        uuid        NOT NULL,
    tm_heartbeat timestamptz NOT NULL DEFAULT now() -- for people; nothing is decided by it
) WITH (fillfactor = 10);
-- SECURITY: a server of before may answer from memory until its lease ends. So revocations wait for that, as for any other that doesn't
-- acknowledge them; then it is taken off the list.
INSERT INTO instances (id, seq, lease_ms, position, entry) SELECT id, seq, lease_ms, position, gen_random_uuid() FROM replicas;
DROP TABLE replicas;

DROP TRIGGER changed ON accesskeys;
DROP TRIGGER removed ON accesskeys;
DROP TRIGGER emptied ON accesskeys;
DROP TRIGGER changed ON agents;
DROP TRIGGER removed ON agents;
DROP TRIGGER emptied ON agents;
DROP TRIGGER changed ON customers;
DROP TRIGGER removed ON customers;
DROP TRIGGER emptied ON customers;
DROP TRIGGER changed ON service_accounts;
DROP TRIGGER removed ON service_accounts;
DROP TRIGGER emptied ON service_accounts;
DROP TRIGGER changed ON service_account_keys;
DROP TRIGGER removed ON service_account_keys;
DROP TRIGGER emptied ON service_account_keys;
DROP FUNCTION accesskeys_changed();
DROP FUNCTION rows_changed();
DROP FUNCTION table_emptied();
DROP FUNCTION append_change(text, bytea[]);

-- The functions name the schema of their tables, so that they work for whoever changes a row, whatever the search_path. A
-- pinned search_path would cost each call as much as the call itself.
DO $migration$
BEGIN
EXECUTE replace($functions$

-- Every write of the service goes through this. It waits for the advisory locks under which writes and revocations exclude each
-- other: a write holds those of its customers to its end, shared, or exclusively where it changes what callers rest on. Then it looks whether the caller, and what the caller
-- acts on, are as they were when somebody decided that the caller may do this. If they are not, it raises an error, which ends the
-- transaction: the statements behind it, COMMIT among them, have been sent already. It returns false where the target customer is
-- none, or deleted.
--
-- SECURITY: it must stay volatile. Then each of its queries sees what was committed before that query, not before the statement
-- that it is called in: what whoever held the locks has done.
CREATE FUNCTION @schema.admit_write(
    first_lock int, first_exclusive boolean, second_lock int, second_exclusive boolean, -- in ascending order; null for none
    instance uuid, instance_seq bigint, -- this database must show this heartbeat
    customer uuid, target uuid, -- the caller's customer, and whose rows are written
    accesskey uuid, accesskey_roles text[], -- these are the caller's, each null where the credential doesn't rest on one
    agent uuid, agent_permission bigint, agent_password timestamptz,
    account uuid, account_roles text[], account_key uuid,
    expires timestamptz,
    target_agent uuid, target_permission bigint
) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    ignored text;
    changed boolean := false;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the snapshot may be older than the locks' USING ERRCODE = 'AK003';
    END IF;
    IF current_setting('client_min_messages') = 'error' THEN -- the warning that a commit was not confirmed must be sent
        ignored := set_config('client_min_messages', 'warning', true);
    END IF;
    IF first_exclusive THEN
        ignored := pg_advisory_xact_lock(1633905507, first_lock);
    ELSIF first_lock IS NOT NULL THEN
        ignored := pg_advisory_xact_lock_shared(1633905507, first_lock);
    END IF;
    IF second_exclusive THEN
        ignored := pg_advisory_xact_lock(1633905507, second_lock);
    ELSIF second_lock IS NOT NULL THEN
        ignored := pg_advisory_xact_lock_shared(1633905507, second_lock);
    END IF;
    IF accesskey IS NOT NULL THEN
        PERFORM FROM @schema.accesskeys k JOIN @schema.customers c ON c.id = k.customer_id
        WHERE k.id = accesskey AND k.customer_id = customer AND k.roles = accesskey_roles AND k.tm_expire > clock_timestamp()
          AND k.tm_delete = '9999-01-01 00:00:00+00' AND c.tm_delete = '9999-01-01 00:00:00+00';
        changed := NOT FOUND;
    END IF;
    IF agent IS NOT NULL OR account IS NOT NULL OR target_agent IS NOT NULL OR instance IS NOT NULL THEN
        IF instance IS NOT NULL THEN
            PERFORM FROM @schema.instances i WHERE i.id = instance AND i.seq >= instance_seq;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'this database does not show the last heartbeat of the server that writes' USING ERRCODE = 'AK002';
            END IF;
        END IF;
        IF expires <= clock_timestamp() THEN
            changed := true;
        END IF;
        IF agent IS NOT NULL THEN
            PERFORM FROM @schema.agents a JOIN @schema.customers c ON c.id = a.customer_id
            WHERE a.id = agent AND a.customer_id = customer AND a.permission = agent_permission
              AND (agent_password IS NULL OR a.tm_password = agent_password)
              AND a.tm_delete = '9999-01-01 00:00:00+00' AND c.tm_delete = '9999-01-01 00:00:00+00';
            changed := changed OR NOT FOUND;
        END IF;
        IF account IS NOT NULL THEN
            PERFORM FROM @schema.service_accounts s JOIN @schema.customers c ON c.id = s.customer_id
            WHERE s.id = account AND s.customer_id = customer AND s.roles = account_roles
              AND s.tm_delete = '9999-01-01 00:00:00+00' AND c.tm_delete = '9999-01-01 00:00:00+00';
            changed := changed OR NOT FOUND;
        END IF;
        IF account_key IS NOT NULL THEN
            PERFORM FROM @schema.service_account_keys k
            WHERE k.id = account_key AND k.account_id = account AND k.tm_delete = '9999-01-01 00:00:00+00';
            changed := changed OR NOT FOUND;
        END IF;
        IF target_agent IS NOT NULL THEN
            PERFORM FROM @schema.agents a
            WHERE a.id = target_agent AND a.permission = target_permission AND a.tm_delete = '9999-01-01 00:00:00+00';
            changed := changed OR NOT FOUND;
        END IF;
    END IF;
    IF changed THEN
        RAISE EXCEPTION 'the caller or its target is not as it was' USING ERRCODE = 'AK001';
    END IF;
    IF target IS DISTINCT FROM customer AND target IS NOT NULL THEN
        PERFORM FROM @schema.customers c WHERE c.id = target AND c.tm_delete = '9999-01-01 00:00:00+00';
        RETURN FOUND;
    END IF;
    RETURN true;
END
$$;

-- admit_write for the most usual write, a customer-wide access key that makes something for its customer: in as few steps as it can
-- be, since each of them costs.
CREATE FUNCTION @schema.admit_accesskey_write(lock int, customer uuid, accesskey uuid, accesskey_roles text[])
RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' OR current_setting('client_min_messages') = 'error'
        OR pg_advisory_xact_lock_shared(1633905507, lock) IS NULL -- which it never is
    THEN
        RETURN @schema.admit_write(lock, false, NULL, NULL, NULL, NULL, customer, customer, accesskey, accesskey_roles,
            NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
    END IF;
    PERFORM FROM @schema.accesskeys k JOIN @schema.customers c ON c.id = k.customer_id
    WHERE k.id = accesskey AND k.customer_id = customer AND k.roles = accesskey_roles AND k.tm_expire > clock_timestamp()
      AND k.tm_delete = '9999-01-01 00:00:00+00' AND c.tm_delete = '9999-01-01 00:00:00+00';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the caller is not as it was' USING ERRCODE = 'AK001';
    END IF;
    RETURN true;
END
$$;

-- The same locks for changes that others make, exclusively. There are 256 of them, 0x61636b63 ("ackc") and the last byte of a customer's
-- id, so that who changes rows of many customers, or of nobody knows whom (null), can have them all. Package store has the same.
CREATE FUNCTION @schema.lock_customers(customers uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    lock_key int;
BEGIN
    IF customers IS NULL THEN
        FOR lock_key IN 0..255 LOOP
            PERFORM pg_advisory_xact_lock(1633905507, lock_key);
        END LOOP;
    ELSE
        FOR lock_key IN SELECT DISTINCT ('x' || right(id::text, 2))::bit(8)::int AS key FROM unnest(customers) AS id ORDER BY key LOOP
            PERFORM pg_advisory_xact_lock(1633905507, lock_key);
        END LOOP;
    END IF;
END
$$;

-- Subjects that are null: whatever is remembered may have changed. So may customers be, for all of them.
CREATE FUNCTION @schema.append_change(noun text, subjects bytea[], customers uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    fresh uuid := gen_random_uuid();
    head  bigint;
BEGIN
    IF cardinality(subjects) > 1000 THEN
        subjects := NULL;
    END IF;
    IF subjects IS NULL THEN
        customers := NULL;
    END IF;
    -- A server's own change holds its customer's lock by now, and would wait for others who wait for it.
    IF current_setting('accesskeys.internal', true) IS DISTINCT FROM 'on' THEN
        PERFORM @schema.lock_customers(customers);
    END IF;
    UPDATE @schema.change_head SET position = position + 1, entry = fresh WHERE single = 1 RETURNING position INTO head;
    INSERT INTO @schema.changes VALUES (head, fresh, noun, subjects);
    DELETE FROM @schema.changes WHERE position = head - 10000;
    PERFORM pg_notify('accesskeys_changes', ''); -- a hint
END
$$;

-- For each statement that changes rows of a table that verification reads.
CREATE FUNCTION @schema.log_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    subjects  bytea[];
    customers uuid[];
BEGIN
    CASE TG_TABLE_NAME
    WHEN 'accesskeys' THEN
        SELECT array_agg(r.token_sha256), array_agg(DISTINCT r.customer_id) INTO subjects, customers
        FROM (SELECT o.token_sha256, o.customer_id FROM old_rows o LIMIT 1001) r;
    WHEN 'service_account_keys' THEN
        SELECT array_agg(uuid_send(r.id)), array_agg(DISTINCT a.customer_id) INTO subjects, customers
        FROM (SELECT o.id, o.account_id FROM old_rows o LIMIT 1001) r
        JOIN @schema.service_accounts a ON a.id = r.account_id;
    WHEN 'customers' THEN
        SELECT array_agg(uuid_send(r.id)), array_agg(r.id) INTO subjects, customers
        FROM (SELECT o.id FROM old_rows o LIMIT 1001) r;
    ELSE
        SELECT array_agg(uuid_send(r.id)), array_agg(DISTINCT r.customer_id) INTO subjects, customers
        FROM (SELECT o.id, o.customer_id FROM old_rows o LIMIT 1001) r;
    END CASE;
    IF subjects IS NOT NULL THEN -- else no row was changed
        PERFORM @schema.append_change(TG_TABLE_NAME, subjects, customers);
    END IF;
    RETURN NULL;
END
$$;

-- For whatever no statement trigger is told of: TRUNCATE, and each row that is changed where triggers for replication alone fire,
-- as in the apply workers of logical replication. One entry a transaction: one a row takes the square of their number.
CREATE FUNCTION @schema.log_everything() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM @schema.change_head h JOIN @schema.changes c ON c.position = h.position
        WHERE h.single = 1 AND h.xmin = pg_current_xact_id()::xid AND c.subjects IS NULL
    ) THEN
        PERFORM @schema.append_change('', NULL, NULL);
    END IF;
    RETURN NULL;
END
$$;

-- What the service's own changes call after they have changed a table: if no trigger has logged that, they do it themselves.
CREATE FUNCTION @schema.ensure_logged(changed text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM @schema.changes c
        WHERE c.position > (SELECT h.position - 16 FROM @schema.change_head h WHERE h.single = 1)
          AND c.xmin = pg_current_xact_id()::xid AND (c.noun = changed OR c.subjects IS NULL)
    ) THEN
        PERFORM @schema.append_change('', NULL, NULL);
    END IF;
END
$$;

-- The log and the list of servers are changed by triggers and by the servers, which say so. An acknowledgement that is lost, or
-- made up, is a revocation that answers too early.
CREATE FUNCTION @schema.guard_internals() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() < 2 AND current_setting('accesskeys.internal', true) IS DISTINCT FROM 'on' THEN
        RAISE EXCEPTION 'the table % is how the running servers agree on what was revoked: it can''t be changed by hand', TG_TABLE_NAME
            USING HINT = 'docs/operations.md says what to do about a log that is damaged.';
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;

-- What is not as this step made it: the triggers that are missing or that don't fire when they should.
CREATE FUNCTION @schema.broken_triggers() RETURNS SETOF text LANGUAGE sql STABLE AS $$
    SELECT format('%s on %s', wanted.trigger, wanted.relation)
    FROM (
        SELECT relation, trigger, fires
        FROM unnest(ARRAY['accesskeys', 'agents', 'customers', 'service_accounts', 'service_account_keys']) AS relation,
             (VALUES ('changed', 'O'), ('removed', 'O'), ('applied', 'R'), ('emptied', 'A')) AS t (trigger, fires)
        UNION ALL
        SELECT relation, trigger, 'A'
        FROM unnest(ARRAY['changes', 'change_head', 'instances']) AS relation, unnest(ARRAY['guarded', 'guarded_emptying']) AS trigger
    ) wanted
    LEFT JOIN pg_trigger t ON t.tgname = wanted.trigger AND NOT t.tgisinternal
        AND t.tgrelid = to_regclass($schema$@schema$schema$ || '.' || wanted.relation)
    WHERE t.tgenabled IS NULL OR t.tgenabled::text NOT IN (wanted.fires, 'A')
$$;

$functions$, '@schema', quote_ident(current_schema()));
END
$migration$;

-- Statement triggers, so that a change counts whoever makes it: this program, a person with psql. TRUNCATE's fires always; the
-- row triggers fire only where the statement triggers don't, for apply workers and under session_replication_role = replica.
DO $$
DECLARE
    relation text;
BEGIN
    FOREACH relation IN ARRAY ARRAY['accesskeys', 'agents', 'customers', 'service_accounts', 'service_account_keys'] LOOP
        EXECUTE format('CREATE TRIGGER changed AFTER UPDATE ON %I REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION log_change()', relation);
        EXECUTE format('CREATE TRIGGER removed AFTER DELETE ON %I REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION log_change()', relation);
        EXECUTE format('CREATE TRIGGER applied AFTER UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION log_everything()', relation);
        EXECUTE format('CREATE TRIGGER emptied AFTER TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION log_everything()', relation);
        EXECUTE format('ALTER TABLE %I ENABLE REPLICA TRIGGER applied', relation);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER emptied', relation);
    END LOOP;
    FOREACH relation IN ARRAY ARRAY['changes', 'change_head', 'instances'] LOOP
        EXECUTE format('CREATE TRIGGER guarded BEFORE INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION guard_internals()', relation);
        EXECUTE format('CREATE TRIGGER guarded_emptying BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION guard_internals()', relation);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER guarded', relation);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER guarded_emptying', relation);
    END LOOP;
END
$$;
