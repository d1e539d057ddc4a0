DROP TABLE accesskey_uses;

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

DROP TABLE replicas;
DROP TABLE change_head;
DROP TABLE changes;
