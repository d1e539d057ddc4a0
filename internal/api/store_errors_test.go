package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// A store failure is a 503. Every route that reads or writes says so, by whatever statement it fails: a caller who got an empty 200 would
// take a password for changed, or a key for deleted. The caller itself is known from memory.
func TestEveryRouteSaysThatItsStoreFailed(t *testing.T) {
	t.Parallel()
	tables := []string{"customers", "agents", "accesskeys", "service_accounts", "service_account_keys"}
	for name, broken := range map[string]struct {
		sql    string // for each table
		writes bool   // are all that fail
	}{
		"no statement is understood": {`ALTER TABLE %[1]s RENAME tm_create TO elsewhere`, false},
		"no row can be written":      {`CREATE TRIGGER refusal BEFORE INSERT OR UPDATE ON %[1]s FOR EACH ROW EXECUTE FUNCTION refuse()`, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			rows, _ := rowsOf(matrix, nil, codes())
			w := h.newFixture(identities()[0]) // who may do everything
			h.get("/v1.0/me", w.caller.bearer).wants(http.StatusOK)
			h.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$`)
			for _, table := range tables {
				h.exec(fmt.Sprintf(broken.sql, table))
			}
			asked := 0
			for _, r := range rows {
				if r.path == "/v1.0/me" || broken.writes && r.method == http.MethodGet {
					continue
				}
				asked++
				if got := h.send(w.requestOf(r, w.own)); got.code != 503 || !strings.Contains(string(got.raw), `"SERVICE_UNAVAILABLE"`) {
					t.Errorf("%s: %d %s", r, got.code, got.raw)
				}
			}
			if asked < 30 {
				t.Errorf("only %d requests were sent", asked)
			}
		})
	}
}
