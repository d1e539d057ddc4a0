package store_test

import (
	"fmt"
	"net/netip"

	"sync"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

func network(n int) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", n/256, n%256))
}

// Networks that logged in as a username within 30 days are known, on every server. Others' are not, nor are neighbours.
func TestNetworkOfALoginIsKnownFor30Days(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice, bob := w.createAgent(w.acme, "alice"), w.createAgent(w.acme, "bob")
	home, away := network(1), netip.MustParsePrefix("2001:db8:1:100::/56")
	other := open(t, w.url)
	is := func(username string, from netip.Prefix, known, fresh bool) {
		t.Helper()
		got := must(other.AgentByUsername(t.Context(), username, from))(t)
		if got.KnownNetwork != known || got.FreshNetwork != fresh {
			t.Errorf("%s from %s: known %v, fresh %v", username, from, got.KnownNetwork, got.FreshNetwork)
		}
	}
	record := func(agent store.Agent, from netip.Prefix) {
		t.Helper()
		noError(t, w.store.RecordLogin(t.Context(), agent.ID, from))
	}
	is("alice", home, false, false)
	record(alice, home)
	record(bob, away)
	is("ALICE", home, true, true)
	is("bob", away, true, true)
	for _, stranger := range []netip.Prefix{network(0), network(2), away, netip.MustParsePrefix("10.0.0.0/23"), netip.MustParsePrefix("10.0.1.0/25"), {}} {
		is("alice", stranger, false, false)
	}
	is("bob", home, false, false)
	is("bob", netip.MustParsePrefix("2001:db8:1::/56"), false, false)

	w.exec(`UPDATE login_networks SET tm_login = now() - interval '30 days' + interval '1 minute'`)
	is("alice", home, true, false)
	is("bob", away, true, false)
	record(alice, home)
	is("alice", home, true, true)
	w.exec(`UPDATE login_networks SET tm_login = now() - interval '30 days'`)
	is("alice", home, false, false)
	record(alice, home) // clears bob's away
	is("alice", home, true, true)
	wantEqual(t, "rows left", value[int](w, `SELECT count(*) FROM login_networks`), 1)
}

// An agent has 32 networks at most, those that it has logged in from last, also where it logs in from everywhere at once.
func TestNetworksOfAnAgentAreBounded(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice, bob := w.createAgent(w.acme, "alice"), w.createAgent(w.acme, "bob")
	w.exec(`INSERT INTO login_networks SELECT $1, set_masklen(('10.9.' || i || '.0')::cidr, 24), now() - i * interval '1 hour' FROM generate_series(1, 40) i`, bob.ID)
	for n := range 40 {
		noError(t, w.store.RecordLogin(t.Context(), alice.ID, network(n)))
	}
	kept := value[string](w, `SELECT count(*) || ' from ' || min(network) || ' to ' || max(network) FROM login_networks WHERE agent_id = $1`, alice.ID)
	wantEqual(t, "the networks kept", kept, "32 from 10.0.8.0/24 to 10.0.39.0/24")
	wantEqual(t, "networks of the other agent", value[int](w, `SELECT count(*) FROM login_networks WHERE agent_id = $1`, bob.ID), 40)
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for n := range 30 {
				wantError(t, "a login", w.store.RecordLogin(t.Context(), bob.ID, network(n*(worker%2+1))), nil)
			}
		})
	}
	group.Wait()
	if n := value[int](w, `SELECT count(*) FROM login_networks WHERE agent_id = $1`, bob.ID); n > 32+7 { // one for each that came later
		t.Errorf("after logins at once there are %d", n)
	}
	noError(t, w.store.RecordLogin(t.Context(), bob.ID, network(0)))
	wantEqual(t, "networks after one more", value[int](w, `SELECT count(*) FROM login_networks WHERE agent_id = $1`, bob.ID), 32)
}

// Noting a network reads what it is about, however many agents there are.
func TestNetworksAreReadByTheirIndexes(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.exec(`INSERT INTO login_networks SELECT gen_random_uuid(), '10.0.0.0/24', now() - i * interval '1 second' FROM generate_series(1, 20000) i`)
	w.exec(`VACUUM ANALYZE login_networks`)
	traced, catcher := openTraced(t, w.url)
	agent := w.createAgent(w.acme, "alice")
	noError(t, traced.RecordLogin(t.Context(), agent.ID, network(1)))
	must(traced.AgentByUsername(t.Context(), "alice", network(1)))(t)
	w.readIndexes([]indexed{
		{"looking", catcher.with(t, "LEFT JOIN login_networks"), "login_networks_pkey", nil},
		{"clearing away", catcher.with(t, "SKIP LOCKED"), "login_networks_tm_login", nil},
		{"bounding", catcher.with(t, "OFFSET"), "login_networks_pkey", []string{"a Sort", "rows that the index does not keep out"}}, // of one agent's rows
	})
}

// A network of an agent that there is none of, or is deleted, is no error: nothing is found by it.
func TestNetworkOfADeletedAgentFindsNothing(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	first := w.createAgent(w.acme, "alice")
	w.createAgent(w.acme, "another admin")
	noError(t, w.store.RecordLogin(t.Context(), first.ID, network(1)))
	must(w.store.DeleteAgent(t.Context(), operator, first))(t)
	w.createAgent(w.globex, "alice") // another one with the username
	known := must(w.store.AgentByUsername(t.Context(), "alice", network(1)))(t).KnownNetwork
	wantEqual(t, "the predecessor's network is known", known, false)
	noError(t, w.store.RecordLogin(t.Context(), uuid.New(), network(1)))
}

// A login does not wait for its network to be on the disk, or at a standby.
func TestNetworkIsNotedWithoutWaitingForTheDisk(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.exec(`CREATE TABLE commits (synchronous text)`)
	w.exec(`CREATE FUNCTION note_commit() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN INSERT INTO commits VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$`)
	w.exec(`CREATE CONSTRAINT TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON login_networks DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION note_commit()`)
	agent := w.createAgent(w.acme, "alice")
	waiting := open(t, withSetting(t, w.url, "synchronous_commit", "on"))
	noted := func(do func()) string {
		t.Helper()
		w.exec(`DELETE FROM commits`)
		do()
		return value[string](w, `SELECT string_agg(synchronous, ' ') FROM commits`)
	}
	w.exec(`INSERT INTO login_networks SELECT gen_random_uuid(), '10.1.1.0/24', now() - interval '40 days'`)
	w.exec(`INSERT INTO login_networks SELECT $1, set_masklen(('10.9.' || i || '.0')::cidr, 24), now() - i * interval '1 hour' FROM generate_series(1, 32) i`, agent.ID)
	if got := noted(func() {
		noError(t, waiting.RecordLogin(t.Context(), agent.ID, network(1)))
	}); got != "off off off" { // one added, one expired, one too much
		t.Errorf("synchronous_commit is %s", got)
	}
	if got := noted(func() {
		w.exec(`SET synchronous_commit TO on; DELETE FROM login_networks WHERE network = '10.0.1.0/24'`)
	}); got != "on" { // the control
		t.Errorf("control: synchronous_commit is %s", got)
	}
}
