package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"accesskeys/internal/secret"
)

// Contract, section 2: Unknown user, wrong password and deleted user get one answer, in the same time. The control is a hash that can't be
// read, which is refused without any computing and must be told apart by the same measure.
func TestNoHashTakesAsLongAsARealOne(t *testing.T) {
	t.Parallel()
	p := newPasswords(t, 1)
	hash := must(p.Hash(t.Context(), secret.New("right")))(t)
	// The least of several is what the computing takes; the rest is what the machine was doing besides. So the figures
	// only get better with more rounds, and a check that computes nothing never gets near.
	least := map[string]time.Duration{}
	alike, apart := false, false
	for round := 0; round < 60 && (!alike || !apart); round++ {
		for name, stored := range map[string]secret.Value{"real": hash, "none": {}, "broken": secret.New("$argon2id$broken")} {
			started := time.Now()
			if ok, renewed, err := p.check(t.Context(), secret.New("wrong"), stored); ok || !renewed.Empty() || err != nil {
				t.Fatalf("%s: %t, %v", name, ok, err)
			}
			if took := time.Since(started); least[name] == 0 || took < least[name] {
				least[name] = took
			}
		}
		alike = least["none"] > least["real"]*2/3 && least["none"] < least["real"]*3/2
		apart = least["broken"] < least["real"]/3
	}
	if !alike || !apart {
		t.Errorf("a real hash takes %s, none %s, a broken one %s", least["real"], least["none"], least["broken"])
	}
	// No password matches it: not the empty one, and not the unknown user's own.
	for _, password := range []string{"", "right", p.dummy.Reveal()} {
		if ok, _, err := p.check(t.Context(), secret.New(password), secret.Value{}); ok || err != nil {
			t.Errorf("%q matches no hash at all: %t, %v", password, ok, err)
		}
	}
}

// mostAtOnce runs more hashes and checks than may compute at once, and returns the most that a look at all goroutines
// found computing.
func mostAtOnce(t *testing.T, atOnce int) int {
	t.Helper()
	p := newPasswords(t, atOnce)
	hash := must(p.Hash(t.Context(), secret.New("right")))(t)
	// Goroutines of this test are told from those of others by a label.
	label := fmt.Sprintf("%s/%d", t.Name(), atOnce)
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			pprof.Do(t.Context(), pprof.Labels("hashing", label), func(ctx context.Context) {
				var err error
				if i%2 == 0 {
					_, err = p.Hash(ctx, secret.New("right"))
				} else {
					_, _, err = p.check(ctx, secret.New("wrong"), hash)
				}
				if err != nil {
					t.Error(err)
				}
			})
		})
	}
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	most := 0
	for {
		select {
		case <-done:
			return most
		default:
		}
		var stacks bytes.Buffer
		if err := pprof.Lookup("goroutine").WriteTo(&stacks, 1); err != nil {
			t.Fatal(err)
		}
		computing := 0
		_, records, _ := strings.Cut(stacks.String(), "\n") // after the line with the total
		for record := range strings.SplitSeq(records, "\n\n") {
			if strings.Contains(record, label) &&
				(strings.Contains(record, "auth.argonHash+") || strings.Contains(record, "auth.argonMatches+")) {
				var count int
				if _, err := fmt.Sscanf(record, "%d @", &count); err != nil {
					t.Fatalf("record %q: %v", record, err)
				}
				computing += count
			}
		}
		most = max(most, computing)
		time.Sleep(time.Millisecond) // a look stops the fixture
	}
}

// Bound how many run at once, or a login flood eats the memory. The control: where five may compute at once, the same look finds more than
// two.
func TestOnlySoManyPasswordsAreComputedAtOnce(t *testing.T) {
	t.Parallel()
	if most := mostAtOnce(t, 2); most < 1 || most > 2 {
		t.Errorf("%d at once, want 1 or 2", most)
	}
	for most, round := 0, 0; most <= 2; round++ {
		if most = mostAtOnce(t, 5); round == 20 {
			t.Fatalf("never more than %d seen at once where five may: the measure tells nothing", most)
		}
	}
}

// Contract, section 5: 503 ... within 5 s: a request that waits for a turn is refused after a while, is never let in beyond the number, and a turn
// that is given back is used.
func TestPasswordsBeyondTheNumberAreRefusedAfterTheWait(t *testing.T) {
	t.Parallel()
	const wait = 30 * time.Millisecond
	p, err := NewPasswords(2, wait, DefaultHashCost())
	if err != nil {
		t.Fatal(err)
	}
	first, second := must(p.turns.take(t.Context()))(t), must(p.turns.take(t.Context()))(t)
	calls := map[string]func(context.Context) error{
		"check": func(ctx context.Context) error {
			ok, renewed, err := p.check(ctx, secret.New("a"), secret.New("a"))
			if ok || !renewed.Empty() {
				t.Error("a check without a turn says yes")
			}
			return err
		},
		"check without a hash": func(ctx context.Context) error {
			_, _, err := p.check(ctx, secret.New("a"), secret.Value{})
			return err
		},
		"Hash": func(ctx context.Context) error {
			hash, err := p.Hash(ctx, secret.New("a"))
			if err != nil && !hash.Empty() {
				t.Error("a refused Hash gives a hash")
			}
			return err
		},
	}
	for name, call := range calls {
		started := time.Now()
		if err := call(t.Context()); !errors.Is(err, ErrBusy) {
			t.Errorf("%s: %v, want ErrBusy", name, err)
		}
		if took := time.Since(started); took < wait {
			t.Errorf("%s was refused after %s, before the wait of %s was over", name, took, wait)
		}
	}
	first()
	for range 3 { // one after the other: each gives its turn back
		for name, call := range calls {
			if err := call(t.Context()); err != nil {
				t.Errorf("%s after a turn came free: %v", name, err)
			}
		}
	}
	second()
}

// A client that has left must not keep its place in the queue.
func TestCancelledContextEndsTheWaitForATurn(t *testing.T) {
	t.Parallel()
	p, err := NewPasswords(1, time.Hour, DefaultHashCost())
	if err != nil {
		t.Fatal(err)
	}
	defer must(p.turns.take(t.Context()))(t)()
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error)
	go func() {
		_, err := p.Hash(ctx, secret.New("a"))
		waiting <- err
	}()
	select {
	case err := <-waiting:
		t.Fatalf("did not wait for its turn: %v", err)
	case <-time.After(20 * time.Millisecond): // enough to see one that does not wait at all
	}
	cancel()
	select {
	case err := <-waiting:
		if !errors.Is(err, ErrBusy) {
			t.Errorf("%v, want ErrBusy", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("still waiting after its context was cancelled")
	}
}

// A number that lets nobody in would read as a server that is busy for ever.
func TestPasswordsNeedAtLeastOneAtOnce(t *testing.T) {
	t.Parallel()
	for _, atOnce := range []int{0, -1} {
		if _, err := NewPasswords(atOnce, time.Second, DefaultHashCost()); err == nil {
			t.Errorf("NewPasswords(%d) is accepted", atOnce)
		}
	}
}
