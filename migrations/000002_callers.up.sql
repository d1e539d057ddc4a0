-- Keys bound to an agent, service accounts with key pairs, and sign-ups.

-- So that a key and its agent can't be of different customers.
ALTER TABLE agents ADD CONSTRAINT agents_customer_id_id_key UNIQUE (customer_id, id);
DROP INDEX agents_customer_id; -- the one above serves its purpose

-- A customer's live agents, newest first.
CREATE INDEX agents_live_newest ON agents (customer_id, tm_create, id)
    WHERE tm_delete = '9999-01-01 00:00:00+00';

-- Null: the key is customer-wide.
ALTER TABLE accesskeys ADD COLUMN agent_id uuid;
-- What a customer-wide key may do: never more than its maker. Of no meaning for a key that is bound to an agent.
ALTER TABLE accesskeys ADD COLUMN roles text[] NOT NULL DEFAULT '{customer_admin}' CHECK (roles <@ ARRAY[
    'accesskey_admin', 'accesskey_viewer', 'agent_admin', 'agent_viewer', 'customer_admin']);
ALTER TABLE accesskeys ADD CONSTRAINT accesskeys_agent_id_fkey
    FOREIGN KEY (customer_id, agent_id) REFERENCES agents (customer_id, id);

-- An agent's live keys, newest first.
CREATE INDEX accesskeys_live_newest_of_agent ON accesskeys (agent_id, tm_create, id)
    WHERE agent_id IS NOT NULL AND tm_delete = '9999-01-01 00:00:00+00';

CREATE TABLE service_accounts (
    id          uuid        PRIMARY KEY,
    customer_id uuid        NOT NULL REFERENCES customers (id),
    name        text        NOT NULL DEFAULT '' CHECK (char_length(name) <= 255),
    detail      text        NOT NULL DEFAULT '' CHECK (char_length(detail) <= 4096),
    roles       text[]      NOT NULL DEFAULT '{}' CHECK (roles <@ ARRAY[
        'accesskey_admin', 'accesskey_viewer', 'agent_admin', 'agent_viewer', 'customer_admin']),
    tm_create   timestamptz NOT NULL DEFAULT now(),
    tm_update   timestamptz NOT NULL DEFAULT now(),
    tm_delete   timestamptz NOT NULL DEFAULT '9999-01-01 00:00:00+00'
);

CREATE INDEX service_accounts_live_newest ON service_accounts (customer_id, tm_create, id)
    WHERE tm_delete = '9999-01-01 00:00:00+00';

-- The public halves. The private ones are nowhere.
CREATE TABLE service_account_keys (
    id         uuid        PRIMARY KEY,
    account_id uuid        NOT NULL REFERENCES service_accounts (id),
    algorithm  text        NOT NULL CHECK (algorithm IN ('RS256', 'ES256', 'EdDSA')),
    public_key bytea       NOT NULL CHECK (octet_length(public_key) <= 1024), -- SubjectPublicKeyInfo, DER
    tm_create  timestamptz NOT NULL DEFAULT now(),
    tm_update  timestamptz NOT NULL DEFAULT now(),
    tm_delete  timestamptz NOT NULL DEFAULT '9999-01-01 00:00:00+00'
);

CREATE INDEX service_account_keys_live_newest ON service_account_keys (account_id, tm_create, id)
    WHERE tm_delete = '9999-01-01 00:00:00+00';

-- Sign-ups that wait for their code. Both secrets are hashed; a row is of no use after tm_expire.
CREATE TABLE signups (
    id              uuid        PRIMARY KEY,
    temp_token_hash bytea       NOT NULL CONSTRAINT signups_temp_token_hash_key UNIQUE CHECK (octet_length(temp_token_hash) = 32),
    code_hash       bytea       NOT NULL CHECK (octet_length(code_hash) = 32), -- of the code and the temp token together
    email           text        NOT NULL CHECK (char_length(email) BETWEEN 1 AND 255),
    name            text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 255),
    detail          text        NOT NULL DEFAULT '' CHECK (char_length(detail) <= 4096),
    known           boolean     NOT NULL, -- a customer had this address already: the code was sent to nobody
    tries           int         NOT NULL DEFAULT 0,
    tm_create       timestamptz NOT NULL DEFAULT now(),
    tm_expire       timestamptz NOT NULL
);

-- What has expired, oldest first.
CREATE INDEX signups_tm_expire ON signups (tm_expire);

-- How many sign-ups an address has, and whether a customer has it.
CREATE INDEX signups_email ON signups ((lower(email) COLLATE "C"));
CREATE INDEX customers_live_email ON customers ((lower(email) COLLATE "C"))
    WHERE tm_delete = '9999-01-01 00:00:00+00';
