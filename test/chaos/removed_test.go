package chaos

import (
	"testing"

	"accesskeys/internal/servertest"
)

// removals take rules that revocation rests on (docs/revocation.md) out of a build of the server, from outside: the program has no switch
// for them. The checker must notice each.
var removals = map[string][]servertest.Edit{
	// A revocation waits until every instance has applied it.
	"without_rule_wait": {edit("internal/changelog/wait.go",
		"	waiting, cancel := context.WithTimeout(ctx, LeaseEnd(r.lease))\n",
		"	if true {\n		return nil\n	}\n	waiting, cancel := context.WithTimeout(ctx, LeaseEnd(r.lease))\n")},
	// What a revocation has committed is on the database that the server's own heartbeats go to.
	"without_rule_witness": {
		edit("internal/changelog/wait.go", "	if w == nil { // no Feed", "	if true || w == nil { // no Feed"),
		edit("internal/changelog/wait.go", "postgres.NullableUUID(l.Witness().ID)", "postgres.NullableUUID(Witness{}.ID)"),
		edit("internal/store/write.go", "	if revises {\n		w = ", "	if false && revises {\n		w = "),
	},
	// A write commits only while its caller may still make it.
	"without_rule_caller": {
		edit("internal/store/write.go", "	return admitted(sql, args, c, t, revises, w)", "	return admitted(sql, args, Operator(), target{customerID: t.customerID}, revises, w)"),
		edit("internal/authn/authn.go", "Recheck(r *http.Request) error { return IdentifyAgain(r) }", "Recheck(*http.Request) error { return nil }"),
	},
	// A commit whose wait for the standby was cut short counts for nothing.
	"without_rule_confirm": {edit("internal/postgres/tx.go", `notice.Routine == "SyncRepWaitForLSN" {`, `false && notice.Routine == "SyncRepWaitForLSN" {`)},
	// A database that was put back or replaced makes an instance forget everything.
	"without_rule_epoch": {edit("internal/authcache/lease.go", `r.epoch != "" && news.Epoch != r.epoch`, `false && news.Epoch != r.epoch`)},
	// What the log says was changed is forgotten.
	"without_rule_log": {edit("internal/authcache/rows.go", "func (r *Cache) forget(change changelog.Change) {\n", "func (r *Cache) forget(change changelog.Change) {\n	if true {\n		return\n	}\n")},
	// Nothing is answered from memory but under a lease.
	"without_rule_lease": {edit("internal/authcache/lease.go", "clock < k.ends\n", "clock < k.ends || true\n")},
	// What was read before a change is not remembered after it.
	"without_rule_fill": {edit("internal/authcache/lookups.go", "r.state.Load().covers(k, found.Head) {", "true || r.state.Load().covers(k, found.Head) {")},
	// Nothing is refused that is not proven.
	"without_rule_proof": {edit("internal/authcache/query.go", "got := r.prove(ctx, q.key)", "got := r.lookups.ask(ctx, q.key, from)")},
}

func edit(file, text, instead string) servertest.Edit {
	return servertest.Edit{File: file, Text: text, Instead: instead}
}

// root is the folder of the module.
const root = "../.."

// Every rule can be taken out of the source as it is: else make chaos would find out, and not make test.
func TestEveryRuleCanBeRemoved(t *testing.T) {
	t.Parallel()
	for rule, edits := range removals {
		if _, err := servertest.Overlay(root, t.TempDir(), edits, nil); err != nil {
			t.Errorf("%s: %v", rule, err)
		}
	}
}
