package store_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// admins counts a customer's live admins.
func (w *fixture) admins(customer store.Customer) int {
	w.t.Helper()
	return value[int](w, `SELECT count(*) FROM agents WHERE customer_id = $1 AND permission & 32 <> 0 AND `+notDeleted, customer.ID)
}

// The last admin of a customer can't be deleted or demoted (409 LAST_ADMIN): another customer's admins do not count, nor do deleted ones,
// nor those who have every bit but that one.
func TestLastAdminCannotBeDeletedOrDemoted(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.createAgent(w.acme, "alice")
	w.createAgent(w.globex, "glob")
	gone := w.createAgent(w.acme, "gone")
	w.exec(`UPDATE agents SET tm_delete = now() WHERE id = $1`, gone.ID)
	almost := newAgent(w.acme, "almost")
	almost.Permission = int64(auth.PermissionAll &^ auth.PermissionCustomerAdmin)
	other := must(w.store.CreateAgent(t.Context(), store.Operator(), almost))(t)

	before := w.everything()
	for _, permission := range []int64{0, 1, 16, 64, almost.Permission} {
		_, err := w.store.SetPermission(t.Context(), store.Operator(), alice, permission)
		wantError(t, "demoting the last admin", err, store.ErrLastAdmin)
	}
	_, err := w.store.DeleteAgent(t.Context(), store.Operator(), alice)
	wantError(t, "deleting the last admin", err, store.ErrLastAdmin)
	if after := w.everything(); after != before {
		t.Errorf("the rows were\n%s\nand are\n%s", before, after)
	}

	// The last admin may get other bits beside that one, and others may lose and get what they like.
	for _, change := range []struct {
		agent      store.Agent
		permission int64
	}{{alice, 32 | 16}, {other, 0}, {alice, 0xFFFF}, {other, 32 | 64}, {alice, 0}} {
		got := must(w.store.SetPermission(t.Context(), store.Operator(), change.agent, change.permission))(t)
		want := change.agent
		want.Permission, want.TmUpdate = change.permission, got.TmUpdate
		if got != want || !got.TmUpdate.After(change.agent.TmUpdate) {
			t.Errorf("the agent is\n%+v, want\n%+v", got, want)
		}
		if stored := must(w.store.Agent(t.Context(), got.ID))(t); stored != want {
			t.Errorf("the stored agent is\n%+v, want\n%+v", stored, want)
		}
	}
	_, err = w.store.DeleteAgent(t.Context(), store.Operator(), other)
	wantError(t, "deleting who is the last admin by now", err, store.ErrLastAdmin)
	if _, err := w.store.DeleteAgent(t.Context(), store.Operator(), alice); err != nil {
		t.Errorf("deleting who is no admin any more: %v", err)
	}
}

// The same where many are removed at the same moment, by demotion and by deletion: one is always left, whatever isolation
// the database has by default.
func TestOfManyAdminsRemovedAtOnceOneIsLeft(t *testing.T) {
	t.Parallel()
	const many, rounds = 8, 12
	w := newFixture(t)
	strict := open(t, withSetting(t, w.url, "default_transaction_isolation", "serializable")) // an operator may have set it
	w.createAgent(w.globex, "beside")
	for round := range rounds {
		customer := must(w.store.CreateCustomer(t.Context(), store.Operator(), store.NewCustomer{Name: "Contested"}))(t)
		var agents []store.Agent
		for range many {
			agents = append(agents, w.createAgent(customer, uuid.NewString()))
		}
		refused := 0
		for _, err := range atOnce(many, func(i int) (err error) {
			s := []*store.Store{w.store, strict}[i/2%2]
			if (i+round)%2 == 0 {
				_, err = s.SetPermission(t.Context(), store.Operator(), agents[i], 16)
			} else {
				_, err = s.DeleteAgent(t.Context(), store.Operator(), agents[i])
			}
			return err
		}) {
			if errors.Is(err, store.ErrLastAdmin) {
				refused++
			} else if err != nil {
				t.Error(err)
			}
		}
		if left := w.admins(customer); left != 1 || refused != 1 {
			t.Fatalf("round %d: %d admins are left of %d, and %d changes were refused", round, left, many, refused)
		}
	}
	if w.admins(w.globex) != 1 {
		t.Error("the other customer's admin is gone")
	}
}

// Two admins remove one another. Both changes wait for the customer's lock, so the second sees what the first has done.
// Control: the very same steps without that wait, the check and then the change, leave nobody.
func TestChangesThatEndAnAdminWaitForEachOther(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice, bob := w.createAgent(w.acme, "alice"), w.createAgent(w.acme, "bob")
	other := w.createAgent(w.globex, "glob")
	w.createAgent(w.globex, "glob2")
	held := w.holdLock(w.acme, false)
	done := make(chan error, 2)
	go func() {
		_, err := w.store.SetPermission(t.Context(), store.Operator(), alice, 0)
		done <- err
	}()
	go func() {
		_, err := w.store.DeleteAgent(t.Context(), store.Operator(), bob)
		done <- err
	}()
	w.untilSoManyWait(2)
	if _, err := w.store.DeleteAgent(t.Context(), store.Operator(), other); err != nil { // which waits for nobody
		t.Error(err)
	}
	if err := held.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	outcomes := []error{<-done, <-done}
	if refused := slices.IndexFunc(outcomes, func(err error) bool { return errors.Is(err, store.ErrLastAdmin) }); refused < 0 ||
		outcomes[1-refused] != nil || w.admins(w.acme) != 1 {
		t.Errorf("%d admins are left after %v", w.admins(w.acme), outcomes)
	}

	// Control.
	first, second := w.createAgent(w.acme, "first"), w.createAgent(w.acme, "second")
	w.exec(`UPDATE agents SET permission = 0 WHERE customer_id = $1 AND id NOT IN ($2, $3)`, w.acme.ID, first.ID, second.ID)
	unguarded := map[uuid.UUID]pgx.Tx{first.ID: w.begin(), second.ID: w.begin()}
	for id, tx := range unguarded {
		var last bool
		if err := tx.QueryRow(t.Context(), `SELECT bool_or(id = $2) AND count(*) = 1 FROM agents
			WHERE customer_id = $1 AND permission & 32 <> 0 AND `+notDeleted, w.acme.ID, id).Scan(&last); err != nil || last {
			t.Fatalf("one of two is the last: %v, %v", last, err)
		}
	}
	for id, tx := range unguarded {
		if _, err := tx.Exec(t.Context(), `UPDATE agents SET permission = 0 WHERE id = $1`, id); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if left := w.admins(w.acme); left != 0 {
		t.Errorf("control: without the wait %d admins are left", left)
	}
}
