-- '9999-01-01 00:00:00+00' in a tm_delete means "not deleted" (contract, section 1). The partial indexes below repeat it
-- as a literal because a query can use them only where its own condition is the same literal.

CREATE TABLE customers (
    id        uuid        PRIMARY KEY,
    name      text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 255),
    detail    text        NOT NULL DEFAULT '' CHECK (char_length(detail) <= 4096),
    email     text        NOT NULL DEFAULT '' CHECK (char_length(email) <= 255),
    tm_create timestamptz NOT NULL DEFAULT now(),
    tm_update timestamptz NOT NULL DEFAULT now(),
    tm_delete timestamptz NOT NULL DEFAULT '9999-01-01 00:00:00+00'
);

-- The list of all customers, newest first.
CREATE INDEX customers_live_newest ON customers (tm_create, id)
    WHERE tm_delete = '9999-01-01 00:00:00+00';

CREATE TABLE agents (
    id            uuid        PRIMARY KEY,
    customer_id   uuid        NOT NULL REFERENCES customers (id),
    username      text        NOT NULL CHECK (char_length(username) BETWEEN 1 AND 255),
    -- argon2id in PHC form, or bcrypt as imported from VoIPBIN until the next login renews it.
    password_hash text        NOT NULL CHECK (password_hash LIKE '$argon2id$%' OR password_hash LIKE '$2_$%'),
    name          text        NOT NULL DEFAULT '' CHECK (char_length(name) <= 255),
    detail        text        NOT NULL DEFAULT '' CHECK (char_length(detail) <= 4096),
    permission    bigint      NOT NULL DEFAULT 0 CHECK (permission BETWEEN 0 AND 65535),
    -- When the password was last set: login tokens issued before it are void. Renewing a hash does not move it.
    tm_password   timestamptz NOT NULL DEFAULT now(),
    tm_create     timestamptz NOT NULL DEFAULT now(),
    tm_update     timestamptz NOT NULL DEFAULT now(),
    tm_delete     timestamptz NOT NULL DEFAULT '9999-01-01 00:00:00+00'
);

-- Login looks an agent up here, and no two live agents share a username in any case. COLLATE "C" keeps the order of the
-- index out of reach of a C library's upgrade, which reorders every other collation.
CREATE UNIQUE INDEX agents_live_username ON agents ((lower(username) COLLATE "C"))
    WHERE tm_delete = '9999-01-01 00:00:00+00';

CREATE INDEX agents_customer_id ON agents (customer_id);

CREATE TABLE accesskeys (
    id           uuid        PRIMARY KEY,
    customer_id  uuid        NOT NULL REFERENCES customers (id),
    name         text        NOT NULL DEFAULT '' CHECK (char_length(name) <= 255),
    detail       text        NOT NULL DEFAULT '' CHECK (char_length(detail) <= 4096),
    -- SHA-256 of the token; unique over deleted keys too, so that a token once revoked can't come back as another key.
    token_hash   bytea       NOT NULL CONSTRAINT accesskeys_token_hash_key UNIQUE CHECK (octet_length(token_hash) = 32),
    token_prefix text        NOT NULL CHECK (token_prefix ~ '^vb_[0-9A-Za-z_-]{8}$'),
    tm_expire    timestamptz NOT NULL,
    tm_create    timestamptz NOT NULL DEFAULT now(),
    tm_update    timestamptz NOT NULL DEFAULT now(),
    tm_delete    timestamptz NOT NULL DEFAULT '9999-01-01 00:00:00+00',
    CHECK (tm_expire > tm_create)
);

-- A customer's live keys, newest first: read backwards, it gives (tm_create, id) descending without a sort.
CREATE INDEX accesskeys_live_newest ON accesskeys (customer_id, tm_create, id)
    WHERE tm_delete = '9999-01-01 00:00:00+00';
