package auth

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
)

// take counts a try at so long after the beginning.
func (t *Tries) take(name string, after time.Duration) (undo func(), wait time.Duration) {
	return t.Take(name, t.began.Add(after))
}

// useUp takes all tries that a name has, by its spellings in turn.
func useUp(t *testing.T, tries *Tries, spellings ...string) {
	t.Helper()
	for n := range maxTries {
		if _, wait := tries.take(spellings[n%len(spellings)], 0); wait > 0 {
			t.Fatalf("%q: refused after %d", spellings, n)
		}
	}
}

// From the 21st in a minute, whichever minute that is; and the wait is the true one.
func TestNameIsTriedTwentyTimesInAnyMinute(t *testing.T) {
	t.Parallel()
	tries := NewTries()
	counted := map[string][]time.Duration{}
	var now time.Duration
	refused := 0
	for range 20_000 {
		now += time.Duration(rand.Int64N(int64(2 * time.Second)))
		name := fmt.Sprintf("name %d", rand.IntN(3))
		var inWindow []time.Duration
		for _, at := range counted[name] {
			if now-at < time.Minute {
				inWindow = append(inWindow, at)
			}
		}
		_, wait := tries.take(name, now)
		switch full := len(inWindow) >= 20; {
		case full && wait != inWindow[len(inWindow)-20]+time.Minute-now:
			t.Fatalf("%d tries in the minute before %s, and the wait is %s", len(inWindow), now, wait)
		case !full && wait != 0:
			t.Fatalf("%d tries in the minute before %s, and one more is refused", len(inWindow), now)
		case full:
			refused++
		default:
			counted[name] = append(inWindow, now)
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
}

// A flood of made-up names neither frees a name that has had its tries, nor takes more memory.
//
// It measures memory, so it runs before the tests that are parallel.
func TestFloodOfNamesFreesNoCountAndTakesNoMemory(t *testing.T) {
	tries := NewTries()
	useUp(t, tries, "victim")
	heap := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := heap()
	const names = 600_000
	for i := range names {
		tries.take(fmt.Sprint("made up ", i), time.Duration(i)*59*time.Second/names)
		if i%(names/20) == 0 {
			if _, wait := tries.take("victim", time.Duration(i)*59*time.Second/names); wait == 0 {
				t.Fatalf("after %d names it may be tried again", i)
			}
		}
	}
	if after := heap(); after > before+1<<20 {
		t.Errorf("%d names take %d bytes", names, after-before)
	}
	runtime.KeepAlive(tries)
}

// A flood as large as a server can answer keeps hardly anybody else from trying: 1,000 tries a second, of names that each are tried as
// often as they may be.
func TestFloodOfNamesHindersHardlyAnyoneElse(t *testing.T) {
	t.Parallel()
	tries := NewTries()
	for i := range 60_000 {
		tries.take(fmt.Sprint("flooded ", i/maxTries), 0)
	}
	hindered := 0
	for i := range 1_000 {
		if _, wait := tries.take(fmt.Sprint("somebody ", i), time.Second); wait > 0 {
			hindered++
		}
	}
	if hindered > 30 { // (3,000 of 32,768 cells)² is one in a hundred
		t.Errorf("%d of 1000 are refused", hindered)
	}
}

// A try that is taken back does not count, whatever was counted meanwhile.
func TestTryThatIsTakenBackDoesNotCount(t *testing.T) {
	t.Parallel()
	tries := NewTries()
	for range 3 * maxTries {
		undo, wait := tries.take("a", 0)
		if wait > 0 {
			t.Fatalf("refused for %s", wait)
		}
		undo()
	}
	first, _ := tries.take("a", time.Second)
	for n := range maxTries - 1 {
		if _, wait := tries.take("a", time.Duration(n)*time.Second); wait > 0 {
			t.Fatalf("refused for %s", wait)
		}
	}
	if undo, wait := tries.take("a", 30*time.Second); wait == 0 {
		t.Error("one more than there may be")
	} else {
		undo() // of no effect
	}
	first()
	if _, wait := tries.take("a", 30*time.Second); wait > 0 {
		t.Errorf("refused for %s", wait)
	}
	first() // too late: its place is another's
	if _, wait := tries.take("a", 30*time.Second); wait == 0 {
		t.Error("one more than there may be")
	}
}

// Nobody gets further tries by another spelling that finds the same agent, in any locale and after RFC 8265.
func TestSpellingsOfANameShareTheirTries(t *testing.T) {
	t.Parallel()
	for _, spellings := range [][]string{
		{"admin@acme.example", "ADMIN@Acme.Example", " admin@acme.example\t", "ａｄｍｉｎ@acme.example", "admin\u200b@acme.example\u00a0"},
		{"jos\u00e9", "jose\u0301", "JOS\u00c9", "JOSE\u0301"},
		{"id", "ID", "\u0130D", "\u0131d"},              // a Turkish locale's two
		{"kelvin", "\u212aelvin", "KELVIN"},             // the sign of a unit
		{"straße", "STRASSE", "strasse", "STRA\u1e9eE"}, // lower-case and capital sharp s
		{"σίσυφος", "ΣΊΣΥΦΟΣ", "σίσυφοσ"},
	} {
		tries := NewTries()
		useUp(t, tries, spellings...)
		for _, spelling := range spellings {
			if _, wait := tries.take(spelling, 0); wait == 0 {
				t.Errorf("%q has tries of its own", spelling)
			}
		}
	}
	tries := NewTries()
	useUp(t, tries, "alice")
	if _, wait := tries.take("alice2", 0); wait > 0 { // the control
		t.Error("names of others are counted together")
	}
}
