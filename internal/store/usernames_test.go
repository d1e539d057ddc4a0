package store_test

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/store"
)

const (
	composed   = "Jos\u00e9"
	decomposed = "Jose\u0301"
)

// holder is the id of the agent that logs in by a username, uuid.Nil where none does.
func (w *fixture) holder(username string) uuid.UUID {
	w.t.Helper()
	agent, err := w.store.AgentByUsername(w.t.Context(), username, netip.Prefix{})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		w.t.Fatal(err)
	}
	return agent.ID
}

// Spellings that people can't tell apart, or that are told apart by case alone, are one username: for a new agent, for a renamed one and at
// a login.
func TestSpellingsOfAUsernameAreOne(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	other := w.createAgent(w.globex, "other")
	w.createAgent(w.acme, "a customer keeps an admin")
	for username, spellings := range map[string][]string{
		composed:        {decomposed, "JOS\u00c9", "jose\u0301"},
		"ada@x.y":       {"ADA@X.Y", "\uff21da@x.y"},
		"Ada Lovelace":  {"ada LOVELACE"},
		"a\u0323\u0301": {"a\u0301\u0323", "\u1ea1\u0301", "\u1ea0\u0301"},
	} {
		agent := w.createAgent(w.acme, username)
		for _, spelling := range append(spellings, username) {
			_, err := w.store.CreateAgent(t.Context(), store.Operator(), newAgent(w.globex, spelling))
			wantError(t, "another "+spelling, err, store.ErrUsernameTaken)
			_, err = w.store.UpdateAgent(t.Context(), store.Operator(), other, store.AgentChange{Username: &spelling})
			wantError(t, "renamed "+spelling, err, store.ErrUsernameTaken)
			for _, typed := range []string{spelling, " " + spelling, spelling + " ", "\u00a0" + spelling + "\r\n\t"} {
				if got := w.holder(typed); got != agent.ID {
					t.Errorf("%q logs in as %s, want %q", typed, got, username)
				}
			}
		}
		found := must(w.store.Bootstrap(t.Context(), store.Bootstrap{Customer: w.acme.Name, Username: spellings[0]}))(t)
		if found.Agent != store.Existed || found.AgentID != agent.ID {
			t.Errorf("bootstrap of %q: %+v", spellings[0], found)
		}
		renamed := must(w.store.UpdateAgent(t.Context(), store.Operator(), agent, store.AgentChange{Username: &spellings[0]}))(t)
		if renamed.Username != spellings[0] || w.holder(username) != agent.ID {
			t.Errorf("%q as %q is %+v", username, spellings[0], renamed)
		}
		gone := must(w.store.DeleteAgent(t.Context(), store.Operator(), renamed))(t)
		if w.holder(username) != uuid.Nil {
			t.Errorf("%+v logs in", gone)
		}
		w.createAgent(w.globex, username) // free again
	}
}

// What would look like another username, or like none, can't become one.
func TestWhatCanBeMistakenIsNoUsername(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	agent := w.createAgent(w.acme, composed)
	for _, username := range []string{
		"", " ", composed + " ", " " + composed, composed + "\n", "a\nb", "a\tb", "a  b", "a\u00a0b", "a\u3000b", "Jo\u200bs\u00e9", "a\u200db", "a\u00adb",
		"\ufeffa", "a\u202eb", "\u2066a\u2069", "a\u2028b", "\u00bd", "\u2168", "\ufb01", "\u260e", "a\x7f", "a\u0085", "\u05d0b", "\ue000", "\xff",
	} {
		if !errors.Is(store.CheckUsername(username), store.ErrUsername) {
			t.Errorf("%q is a username", username)
		}
		_, err := w.store.CreateAgent(t.Context(), store.Operator(), newAgent(w.acme, username))
		wantError(t, username, err, store.ErrUsername)
		_, err = w.store.UpdateAgent(t.Context(), store.Operator(), agent, store.AgentChange{Username: &username})
		wantError(t, username, err, store.ErrUsername)
		if _, err := w.store.Bootstrap(t.Context(), store.Bootstrap{Customer: "c", Username: username}); username != "" && username != "\xff" && !errors.Is(err, store.ErrUsername) {
			t.Errorf("bootstrap of %q: %v", username, err)
		}
	}
	for _, username := range []string{"ada", "ada+test@x.y", "o'hara", "\u65e5\u672c\u8a9e", "\u05d0\u05d1\u05d2", "stra\u00dfe", "l\u00b7l", "~!#$%^&*()_=[]{}|;:,.<>/?`\"\\"} {
		w.createAgent(w.acme, username)
		if w.holder(username) == uuid.Nil {
			t.Errorf("%q does not log in", username)
		}
	}
}

// Agents from before the rules log in as they did. Nobody else gets a username that can be mistaken for one of theirs.
func TestUsernamesFromBeforeTheRulesStayAndAreTaken(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	log := slog.New(slog.DiscardHandler)
	must(migrator(w.url, log, stepsUpTo(t, 6), patience).Up(t.Context()))(t)
	w.exec(`INSERT INTO customers (id, name) VALUES (gen_random_uuid(), 'acme')`)
	insert := func(username string) uuid.UUID {
		return value[uuid.UUID](w, `INSERT INTO agents (id, customer_id, username, password_hash, tm_create)
			SELECT gen_random_uuid(), id, $1, '$2a$10$x', clock_timestamp() FROM customers RETURNING id`, username)
	}
	before := map[string]uuid.UUID{}
	for _, username := range []string{
		"Bob\u200b ", "bob", "\u260e", composed, decomposed, "Eve\n", "Eve", "Zo\u00eb ", "a\u202eb", "two  spaces", "\u200b", "\u05d0b",
	} {
		before[username] = insert(username)
	}
	keyed := func(username string) bool {
		return value[bool](w, `SELECT username_key_of IS NOT DISTINCT FROM username FROM agents WHERE id = $1`, before[username])
	}
	for range 2 { // also after the way back
		must(store.Migrator(w.url, log).Up(t.Context()))(t)
		for username, id := range before {
			if got := w.holder(username); got != id {
				t.Errorf("%q logs in as %s", username, got)
			}
		}
		// The one that is as it should be comes before older ones, then the oldest.
		for username, want := range map[string]bool{
			"bob": true, "Bob\u200b ": false, composed: true, decomposed: false, "Eve": true, "Eve\n": false, "Zo\u00eb ": true, "\u260e": false,
			"a\u202eb": true, "two  spaces": true, "\u200b": false, "\u05d0b": false,
		} {
			if keyed(username) != want {
				t.Errorf("%q has a key: %t", username, !want)
			}
		}
		if w.holder("zo\u00eb") != before["Zo\u00eb "] || w.holder("zoe\u0308") != before["Zo\u00eb "] {
			t.Error("who is seen as Zo\u00eb does not log in so")
		}
		if got := must(store.Migrator(w.url, log).Down(t.Context()))(t); got != 6 {
			t.Fatal(got)
		}
	}
	must(store.Migrator(w.url, log).Up(t.Context()))(t)
	customer := store.Customer{ID: value[uuid.UUID](w, `SELECT id FROM customers`)}
	for _, username := range []string{"BOB", composed, decomposed, "eve", "Zo\u00eb", "zoe\u0308", "ab", "Two Spaces"} {
		_, err := w.store.CreateAgent(t.Context(), store.Operator(), newAgent(customer, username))
		wantError(t, username, err, store.ErrUsernameTaken)
	}
	// Sent back as it is, such a username stays, and another name is no reason to change it.
	agent, same, name := must(w.store.Agent(t.Context(), before["\u260e"]))(t), "\u260e", "other"
	agent = must(w.store.UpdateAgent(t.Context(), store.Operator(), agent, store.AgentChange{Username: &same, Name: &name}))(t)
	if agent.Name != name || w.holder(same) != agent.ID {
		t.Errorf("changed to %+v", agent)
	}

	// A server of the schema before makes agents beside this one, and renames them: it knows no keys.
	late := insert("Zo\u00eb Late")
	w.exec(`UPDATE agents SET username = 'robert' WHERE id = $1`, before["bob"])
	if w.holder("bob") != uuid.Nil || w.holder("zo\u00eb late") != late {
		t.Error("the key of another username is still believed")
	}
	_, err := w.store.CreateAgent(t.Context(), store.Operator(), newAgent(customer, "zoe\u0308 late"))
	wantError(t, "made by an older server", err, store.ErrUsernameTaken)
	// The other one that is seen as bob has the key now.
	if got := w.holder("bob"); got != before["Bob\u200b "] {
		t.Errorf("bob is %s", got)
	}
	renamed := must(w.store.UpdateAgent(t.Context(), store.Operator(), must(w.store.Agent(t.Context(), before["bob"]))(t), store.AgentChange{Username: new("Robert II")}))(t)
	if w.holder("robert ii") != renamed.ID || !keyed("bob") {
		t.Errorf("renamed to %+v", renamed)
	}
}
