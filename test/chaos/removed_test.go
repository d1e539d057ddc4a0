package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// edit replaces text that stands once in a file of the program.
type edit struct{ file, text, instead string }

// removals take rules that revocation rests on (docs/revocation.md) out of a build of the server, from outside: the program has no switch
// for them. The checker must notice each.
var removals = map[string][]edit{
	// A revocation waits until every instance has applied it.
	"without_rule_wait": {{"internal/changelog/wait.go",
		"	waiting, cancel := context.WithTimeout(ctx, LeaseEnd(r.lease))\n",
		"	if true {\n		return nil\n	}\n	waiting, cancel := context.WithTimeout(ctx, LeaseEnd(r.lease))\n"}},
	// What a revocation has committed is on the database that the server's own heartbeats go to.
	"without_rule_witness": {
		{"internal/changelog/wait.go", "	if w == nil { // no Feed", "	if true || w == nil { // no Feed"},
		{"internal/changelog/wait.go", "postgres.NullableUUID(l.Witness().ID)", "postgres.NullableUUID(Witness{}.ID)"},
		{"internal/store/write.go", "	if revises {\n		w = ", "	if false && revises {\n		w = "},
	},
	// A write commits only while its caller may still make it.
	"without_rule_caller": {
		{"internal/store/write.go", "	return admitted(sql, args, c, t, revises, w)", "	return admitted(sql, args, Operator(), target{customerID: t.customerID}, revises, w)"},
		{"internal/api/caller.go", "Recheck(r *http.Request) error { return identifyAgain(r) }", "Recheck(*http.Request) error { return nil }"},
	},
	// A commit whose wait for the standby was cut short counts for nothing.
	"without_rule_confirm": {{"internal/postgres/tx.go", `notice.Routine == "SyncRepWaitForLSN" {`, `false && notice.Routine == "SyncRepWaitForLSN" {`}},
	// A database that was put back or replaced makes an instance forget everything.
	"without_rule_epoch": {{"internal/authcache/lease.go", `r.epoch != "" && news.Epoch != r.epoch`, `false && news.Epoch != r.epoch`}},
	// What the log says was changed is forgotten.
	"without_rule_log": {{"internal/authcache/rows.go", "func (r *Cache) forget(change changelog.Change) {\n", "func (r *Cache) forget(change changelog.Change) {\n	if true {\n		return\n	}\n"}},
	// Nothing is answered from memory but under a lease.
	"without_rule_lease": {{"internal/authcache/cache.go", "clock < k.ends\n", "clock < k.ends || true\n"}},
	// What was read before a change is not remembered after it.
	"without_rule_fill": {{"internal/authcache/lookups.go", "r.state.Load().covers(k, found.Head) {", "true || r.state.Load().covers(k, found.Head) {"}},
	// Nothing is refused that is not proven.
	"without_rule_proof": {{"internal/authcache/query.go", "got := r.prove(ctx, q.key)", "got := r.lookups.ask(ctx, q.key, from)"}},
}

// root is the folder of the module.
const root = "../.."

// removed returns what go build's -overlay has to replace for a build without a rule; the copies are in dir.
func removed(rule, dir string) (map[string]string, error) {
	edits, known := removals[rule]
	if !known {
		return nil, fmt.Errorf("nobody knows how to build a server %s", rule)
	}
	sources := map[string]string{}
	for _, e := range edits {
		if _, read := sources[e.file]; !read {
			source, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				return nil, err
			}
			sources[e.file] = string(source)
		}
		if strings.Count(sources[e.file], e.text) != 1 {
			return nil, fmt.Errorf("%s: %q does not stand once in %s any more", rule, e.text, e.file)
		}
		sources[e.file] = strings.Replace(sources[e.file], e.text, e.instead, 1)
	}
	replaced := map[string]string{}
	for file, source := range sources {
		original, err := filepath.Abs(filepath.Join(root, file))
		if err != nil {
			return nil, err
		}
		replaced[original] = filepath.Join(dir, rule+"-"+filepath.Base(file))
		if err := os.WriteFile(replaced[original], []byte(source), 0o600); err != nil {
			return nil, err
		}
	}
	return replaced, nil
}

// writeOverlay writes the file for go build's -overlay.
func writeOverlay(path string, replaced map[string]string) error {
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": replaced})
	if err != nil {
		return err
	}
	return os.WriteFile(path, overlay, 0o600)
}

// Every rule can be taken out of the source as it is: else make chaos would find out, and not make test.
func TestEveryRuleCanBeRemoved(t *testing.T) {
	t.Parallel()
	for rule := range removals {
		if _, err := removed(rule, t.TempDir()); err != nil {
			t.Error(err)
		}
	}
}
