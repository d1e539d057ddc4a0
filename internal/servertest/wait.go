package servertest

import (
	"testing"
	"time"
)

// Patience bounds every wait for something that takes no time on an idle machine.
const Patience = time.Minute

// Eventually returns once something is so, and fails the test where it never is. It asks again and again: what has to be waited for is in
// another process.
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v it was not so that %s", Patience, what)
		}
	}
}
