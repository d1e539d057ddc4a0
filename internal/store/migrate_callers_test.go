package store_test

import (
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/pgtest"
	"accesskeys/internal/store"
	"accesskeys/migrations"
)

// Contract, section 4: an access key of the customer acts as CustomerAdmin: for a program from before keys had owners and roles every key
// does. So who goes back to it ends the keys that may do less, and a later migration does not revive them.
func TestGoingBackBeforeUserKeysEndsThemAndLimitedKeys(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(k *store.NewAccessKey, alice store.Agent)
		ends   bool
	}{
		"the customer's":                  {func(*store.NewAccessKey, store.Agent) {}, false},
		"an admin account's":              {func(k *store.NewAccessKey, _ store.Agent) { k.Roles = []string{"customer_admin"} }, false},
		"an agent's":                      {func(k *store.NewAccessKey, a store.Agent) { k.AgentID = &a.ID }, true},
		"a viewing account's":             {func(k *store.NewAccessKey, _ store.Agent) { k.Roles = []string{"accesskey_viewer"} }, true},
		"that of an account without role": {func(k *store.NewAccessKey, _ store.Agent) { k.Roles = []string{} }, true},
		"that of all roles but one": {func(k *store.NewAccessKey, _ store.Agent) {
			k.Roles = []string{"accesskey_admin", "accesskey_viewer", "agent_admin", "agent_viewer"}
		}, true},
	}
	setUp := func() (w *fixture, keys map[string]uuid.UUID) {
		t.Helper()
		w, keys = newFixture(t), map[string]uuid.UUID{}
		for name, test := range tests {
			for i, customer := range []store.Customer{w.acme, w.globex} {
				k := newKey(customer, year)
				test.change(&k, w.createAgent(customer, uuid.NewString()))
				keys[name+[]string{"", ", globex"}[i]] = must(w.store.CreateAccessKey(t.Context(), store.Operator(), k))(t).ID
			}
		}
		return w, keys
	}
	live := func(w *fixture, keys map[string]uuid.UUID) (names []string) {
		for name, id := range keys {
			if value[bool](w, `SELECT `+notDeleted+` FROM accesskeys WHERE id = $1`, id) {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	}
	var want []string
	for name, test := range tests {
		if !test.ends {
			want = append(want, name, name+", globex")
		}
	}
	slices.Sort(want)

	w, keys := setUp()
	early := must(w.store.DeleteAccessKey(t.Context(), store.Operator(), w.acme.ID, keys["an agent's"]))(t)
	w.downTo(1, migrations.Files)
	if got := live(w, keys); !slices.Equal(got, want) {
		t.Errorf("after the way down %q are live, want %q", got, want)
	}
	if !value[bool](w, `SELECT tm_delete = $2 AND tm_update = $2 FROM accesskeys WHERE id = $1`, early.ID, early.TmDelete) {
		t.Error("a key that was deleted before has another tm_delete")
	}
	if got := value[int](w, `SELECT count(*) FROM accesskeys WHERE tm_update <> tm_create AND `+notDeleted); got != 0 {
		t.Errorf("%d keys that stay were touched", got)
	}
	must(store.Migrator(w.url, slog.New(slog.DiscardHandler)).Up(t.Context()))(t)
	if got := live(w, keys); !slices.Equal(got, want) {
		t.Errorf("up again %q are live, want %q", got, want)
	}

	// Control: without that statement of the step they all would be their customers' admins.
	const step = "000002_callers.down.sql"
	text := string(must(migrations.Files.ReadFile(step))(t))
	without := regexp.MustCompile(`(?s)UPDATE accesskeys.*?;`).ReplaceAllString(text, "")
	if without == text {
		t.Fatal("the step has no such statement")
	}
	steps := copied(t)
	steps[step] = &fstest.MapFile{Data: []byte(without)}
	w, keys = setUp()
	w.downTo(1, steps)
	if got := live(w, keys); len(got) != len(keys) {
		t.Errorf("control: without the statement %q are live", got)
	}
}

// Migrations up, down, up, step by step: each step down leads to the schema that the steps below it make.
func TestEachStepDownGivesTheSchemaOfTheStepsBelow(t *testing.T) {
	t.Parallel()
	w := fixtureOn(t, pgtest.Migrated(t))
	for version := newestStep(t) - 1; version > 0; version-- {
		w.downTo(version, migrations.Files)
		steps := copied(t)
		maps.DeleteFunc(steps, func(name string, _ *fstest.MapFile) bool {
			return name >= fmt.Sprintf("%06d", version+1)
		})
		below := fixtureOn(t, pgtest.Empty(t))
		must(migrator(below.url, slog.New(slog.DiscardHandler), steps, patience).Up(t.Context()))(t)
		if got, want := fingerprint(w), fingerprint(below); got != want {
			t.Errorf("down to %d gives\n%s\ninstead of\n%s", version, got, want)
		}
	}
}

// Expand, then contract: the program before the callers ran on beside the one after them. What it wrote, it wrote without the columns that
// it did not know, and such a key is its customer's, also after all the steps that came later.
func TestProgramBeforeTheCallersWroteToTheirSchema(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	k := newKey(w.acme, year)
	w.downTo(3, migrations.Files)
	w.exec(`INSERT INTO accesskeys (id, customer_id, name, detail, token_hash, token_prefix, tm_expire)
		VALUES ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7))`,
		uuid.New(), k.CustomerID, k.Name, k.Detail, k.TokenHash[:], k.TokenPrefix, float64(k.Expire))
	must(store.Migrator(w.url, slog.New(slog.DiscardHandler)).Up(t.Context()))(t)
	got := must(keyByHash(t.Context(), open(t, w.url), k.TokenHash, changelog.Position{}))(t)
	if got.AgentID != nil || !slices.Equal(got.Roles, []string{"customer_admin"}) || got.Detail != k.Detail {
		t.Errorf("its key reads as %+v", got)
	}
}

// Contract, section 6: migrate (safe with many servers starting at once): keys that exist come through the step as they were.
func TestKeysFromBeforeStayTheirCustomers(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	k := newKey(w.acme, year)
	key := must(w.store.CreateAccessKey(t.Context(), store.Operator(), k))(t)
	w.downTo(1, migrations.Files)
	must(store.Migrator(w.url, slog.New(slog.DiscardHandler)).Up(t.Context()))(t)
	reopened := open(t, w.url)
	got := must(keyByHash(t.Context(), reopened, k.TokenHash, changelog.Position{}))(t)
	if got.AccessKey != key || !slices.Equal(got.Roles, []string{"customer_admin"}) {
		t.Errorf("the key is\n%+v, was\n%+v", got, key)
	}
}

// downTo takes back the steps above a version.
func (w *fixture) downTo(version int, steps fs.FS) {
	w.t.Helper()
	for at := newestStep(w.t); at > version; {
		below := must(migrator(w.url, slog.New(slog.DiscardHandler), steps, patience).Down(w.t.Context()))(w.t)
		if below >= at {
			w.t.Fatalf("the step down leads from %d to %d", at, below)
		}
		at = below
	}
}
