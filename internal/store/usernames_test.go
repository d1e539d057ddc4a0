package store_test

import (
	"errors"
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

// Spellings that people can't tell apart, or that differ in case alone, are one username: for new agents, renamed ones and logins.
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
			_, err := w.store.CreateAgent(t.Context(), operator, newAgent(w.globex, spelling))
			wantError(t, "another "+spelling, err, store.ErrUsernameTaken)
			_, err = w.store.UpdateAgent(t.Context(), operator, other, store.AgentChange{Username: &spelling})
			wantError(t, "renamed "+spelling, err, store.ErrUsernameTaken)
			for _, typed := range []string{spelling, " " + spelling, spelling + " ", "\u00a0" + spelling + "\r\n\t"} {
				wantEqual(t, "who logs in by "+typed, w.holder(typed), agent.ID)
			}
		}
		found := must(w.store.Bootstrap(t.Context(), store.Bootstrap{Customer: w.acme.Name, Username: spellings[0]}))(t)
		errorIf(t, found.Agent != store.Existed || found.AgentID != agent.ID, "bootstrap of %q: %+v", spellings[0], found)
		renamed := must(w.store.UpdateAgent(t.Context(), operator, agent, store.AgentChange{Username: &spellings[0]}))(t)
		errorIf(t, renamed.Username != spellings[0] || w.holder(username) != agent.ID, "%q as %q is %+v", username, spellings[0], renamed)
		gone := must(w.store.DeleteAgent(t.Context(), operator, renamed))(t)
		errorIf(t, w.holder(username) != uuid.Nil, "%+v logs in", gone)
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
		errorIf(t, !errors.Is(store.CheckUsername(username), store.ErrUsername), "%q is a username", username)
		wantError(t, username, errorOf(w.store.CreateAgent(t.Context(), operator, newAgent(w.acme, username))), store.ErrUsername)
		_, err := w.store.UpdateAgent(t.Context(), operator, agent, store.AgentChange{Username: &username})
		wantError(t, username, err, store.ErrUsername)
		if username != "" && username != "\xff" {
			err := errorOf(w.store.Bootstrap(t.Context(), store.Bootstrap{Customer: "c", Username: username}))
			wantError(t, "bootstrap of "+username, err, store.ErrUsername)
		}
	}
	for _, username := range []string{"ada", "ada+test@x.y", "o'hara", "\u65e5\u672c\u8a9e", "\u05d0\u05d1\u05d2", "stra\u00dfe", "l\u00b7l", "~!#$%^&*()_=[]{}|;:,.<>/?`\"\\"} {
		w.createAgent(w.acme, username)
		errorIf(t, w.holder(username) == uuid.Nil, "%q does not log in", username)
	}
}

// Agents from before the rules log in as they did. Nobody else gets a username that can be mistaken for one of theirs.
func TestUsernamesFromBeforeTheRulesStayAndAreTaken(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Empty(t))
	w.migrate(stepsUpTo(t, 6))
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
		w.up()
		for username, id := range before {
			wantEqual(t, "who logs in by "+username, w.holder(username), id)
		}
		// The one that is as it should be comes before older ones, then the oldest.
		for username, want := range map[string]bool{
			"bob": true, "Bob\u200b ": false, composed: true, decomposed: false, "Eve": true, "Eve\n": false, "Zo\u00eb ": true, "\u260e": false,
			"a\u202eb": true, "two  spaces": true, "\u200b": false, "\u05d0b": false,
		} {
			errorIf(t, keyed(username) != want, "%q has a key: %t", username, !want)
		}
		if w.holder("zo\u00eb") != before["Zo\u00eb "] || w.holder("zoe\u0308") != before["Zo\u00eb "] {
			t.Error("who is seen as Zo\u00eb does not log in so")
		}
		wantEqual(t, "the version", w.down(), 6)
	}
	w.up()
	customer := store.Customer{ID: value[uuid.UUID](w, `SELECT id FROM customers`)}
	for _, username := range []string{"BOB", composed, decomposed, "eve", "Zo\u00eb", "zoe\u0308", "ab", "Two Spaces"} {
		wantError(t, username, errorOf(w.store.CreateAgent(t.Context(), operator, newAgent(customer, username))), store.ErrUsernameTaken)
	}
	// Sent back as it is, such a username stays, and another name is no reason to change it.
	agent, same, name := must(w.store.Agent(t.Context(), before["\u260e"]))(t), "\u260e", "other"
	agent = must(w.store.UpdateAgent(t.Context(), operator, agent, store.AgentChange{Username: &same, Name: &name}))(t)
	errorIf(t, agent.Name != name || w.holder(same) != agent.ID, "changed to %+v", agent)

	// A server of the schema before makes agents beside this one, and renames them: it knows no keys.
	late := insert("Zo\u00eb Late")
	w.exec(`UPDATE agents SET username = 'robert' WHERE id = $1`, before["bob"])
	errorIf(t, w.holder("bob") != uuid.Nil || w.holder("zo\u00eb late") != late, "the key of another username is still believed")
	_, err := w.store.CreateAgent(t.Context(), operator, newAgent(customer, "zoe\u0308 late"))
	wantError(t, "made by an older server", err, store.ErrUsernameTaken)
	// The other one that is seen as bob has the key now.
	wantEqual(t, "bob", w.holder("bob"), before["Bob\u200b "])
	bob := must(w.store.Agent(t.Context(), before["bob"]))(t)
	renamed := must(w.store.UpdateAgent(t.Context(), operator, bob, store.AgentChange{Username: new("Robert II")}))(t)
	errorIf(t, w.holder("robert ii") != renamed.ID || !keyed("bob"), "renamed to %+v", renamed)
}
