-- The networks that agents have logged in from. Their tries are outside of the limit per username, so that a stranger who uses that up
-- does not lock the agent out. Servers of the schemas from 4 on may go on beside it.

CREATE TABLE login_networks (
    agent_id uuid        NOT NULL, -- no foreign key: that would lock the agent's row with each login
    network  cidr        NOT NULL,
    tm_login timestamptz NOT NULL, -- the last one, to the minute
    PRIMARY KEY (agent_id, network)
) WITH (fillfactor = 70);

-- What has expired, oldest first.
CREATE INDEX login_networks_tm_login ON login_networks (tm_login);
