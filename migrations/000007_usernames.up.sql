-- Usernames are compared as RFC 8265 says. The server fills this in, also for agents that are here already and for those that a server of an
-- older schema makes beside it. Servers of the schemas from 4 on may go on.

ALTER TABLE agents
    ADD COLUMN username_key    text, -- of username_key_of by UsernameCaseMapped; null where it has no such form
    ADD COLUMN username_key_of text; -- not the username: an older server has renamed the agent, and the key says nothing

-- lower() of these is unique by agents_live_username, with a key or without.
CREATE UNIQUE INDEX agents_live_username_key ON agents (username_key COLLATE "C")
    WHERE tm_delete = '9999-01-01 00:00:00+00' AND username_key_of = username;

-- The agents to be filled in.
CREATE INDEX agents_live_without_key ON agents (tm_create)
    WHERE tm_delete = '9999-01-01 00:00:00+00' AND username_key_of IS DISTINCT FROM username;
