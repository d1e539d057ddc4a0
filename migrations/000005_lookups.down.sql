DROP TRIGGER keep_customer ON customers;
DROP FUNCTION keep_customer();
ALTER TABLE accesskeys DROP CONSTRAINT accesskeys_roles_check;
ALTER TABLE accesskeys
    ADD CONSTRAINT accesskeys_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES customers (id),
    ADD CONSTRAINT accesskeys_roles_check CHECK (roles <@ ARRAY[
        'accesskey_admin', 'accesskey_viewer', 'agent_admin', 'agent_viewer', 'customer_admin']),
    ADD CONSTRAINT accesskeys_created_by_type_check CHECK (created_by_type IN ('agent', 'accesskey', 'service_account')),
    ADD CONSTRAINT accesskeys_check1 CHECK ((created_by_type IS NULL) = (created_by_id IS NULL));

DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND proname IN ('admit_write', 'admit_accesskey_write') LOOP
        EXECUTE replace(pg_get_functiondef(f), $new$tm_delete >= '9999-01-01$new$, $old$tm_delete = '9999-01-01$old$);
    END LOOP;
END
$$;
