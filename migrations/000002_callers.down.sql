DROP INDEX customers_live_email;
DROP TABLE signups;
DROP TABLE service_account_keys;
DROP TABLE service_accounts;
DROP INDEX accesskeys_live_newest_of_agent;
-- SECURITY: without these columns, a key bound to an agent, or one with fewer rights, would act as its customer's admin.
UPDATE accesskeys SET tm_delete = now(), tm_update = now()
WHERE (agent_id IS NOT NULL OR roles <> '{customer_admin}') AND tm_delete = '9999-01-01 00:00:00+00';
ALTER TABLE accesskeys DROP COLUMN agent_id, DROP COLUMN roles;
DROP INDEX agents_live_newest;
CREATE INDEX agents_customer_id ON agents (customer_id);
ALTER TABLE agents DROP CONSTRAINT agents_customer_id_id_key;
