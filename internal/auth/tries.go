package auth

import (
	"hash/maphash"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/text/cases"
	"golang.org/x/text/runes"
	"golang.org/x/text/transform"
	"golang.org/x/text/unicode/norm"
)

const (
	// maxTries is how many tries a name has in each triesWindow.
	maxTries    = 20
	triesWindow = time.Minute
	// A Tries has triesRows rows of triesCells cells, 10 MiB of memory in all once every cell was used.
	triesRows  = 2
	triesCells = 1 << 15
)

// Tries counts tries by name and bounds them, in memory of a fixed size. Each name has a cell in each row, which others may share, and
// may be tried while one of its cells has room.
//
// SECURITY: no name is forgotten because others are tried, so that a flood of made-up names frees nobody's count. It can only fill
// cells: two names would have to share both of theirs, which a random key decides, or thousands of tries a second come.
type Tries struct {
	seed  maphash.Seed
	began time.Time

	mu    sync.Mutex
	cells []tryCell // row by row
}

// tryCell holds the times of the newest tries, in no order, since a window before the Tries was made.
type tryCell [maxTries]time.Duration

// NewTries makes a Tries.
func NewTries() *Tries {
	return &Tries{seed: maphash.MakeSeed(), began: time.Now(), cells: make([]tryCell, triesRows*triesCells)}
}

// Take counts a try of a name now. Where the name has had its tries, it does not count, and wait is how long until the next one may;
// otherwise wait is 0, and undo takes the try back.
func (t *Tries) Take(name string, now time.Time) (undo func(), wait time.Duration) {
	hash := maphash.String(t.seed, triedName(name))
	at := now.Sub(t.began) + triesWindow
	var oldest [triesRows]*time.Duration

	t.mu.Lock()
	defer t.mu.Unlock()
	wait = triesWindow
	for row := range oldest {
		cell := &t.cells[row*triesCells+int(hash>>(32*row)%triesCells)]
		oldest[row] = &cell[0]
		for i := range cell {
			if cell[i] < *oldest[row] {
				oldest[row] = &cell[i]
			}
		}
		wait = min(wait, *oldest[row]+triesWindow-at)
	}
	if wait > 0 {
		return func() {}, wait
	}
	var before [triesRows]time.Duration
	for row, entry := range oldest {
		before[row], *entry = *entry, at
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		for row, entry := range oldest {
			if *entry == at { // else another try has taken its place
				*entry = before[row]
			}
		}
	}, 0
}

// triedName is what tries of a name are counted under.
//
// SECURITY: it is the same for all spellings that may find the same agent, whatever the locale of the database makes of upper and
// lower case, or else each spelling would have tries of its own. So it is coarse: other names may share it.
func triedName(name string) string {
	// Marks, blanks and what can't be seen don't count.
	ignored := runes.Predicate(func(r rune) bool { return unicode.In(r, unicode.M, unicode.Z, unicode.C) })
	coarse := transform.Chain(norm.NFKD, runes.Remove(ignored), cases.Fold())
	folded, _, err := transform.String(coarse, name)
	if err != nil { // these transformers have no errors of their own
		folded = name
	}
	return strings.ReplaceAll(folded, "ı", "i") // which are one letter in a Turkish locale
}
