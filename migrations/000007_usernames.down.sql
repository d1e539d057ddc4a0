ALTER TABLE agents DROP COLUMN username_key, DROP COLUMN username_key_of; -- with their indexes
