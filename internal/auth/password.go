package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/text/secure/precis"

	"accesskeys/internal/secret"
)

// HashCost is what argon2id (RFC 9106) takes for one hash.
type HashCost struct {
	Memory uint32 // KiB
	Passes uint32
	Lanes  uint8
}

// DefaultHashCost is OWASP's first recommendation for argon2id, about 40 ms and 19 MiB a hash. Nothing but a test hashes for less.
func DefaultHashCost() HashCost { return HashCost{Memory: 19 * 1024, Passes: 2, Lanes: 1} }

// String is the cost's part of the PHC form.
func (c HashCost) String() string {
	return fmt.Sprintf("m=%d,t=%d,p=%d", c.Memory, c.Passes, c.Lanes)
}

const (
	argonSaltLength = 16
	argonKeyLength  = 32
	// argonMinSalt is the least salt that argon2's reference implementation takes, in bytes.
	argonMinSalt = 8
	// maxArgonMemory and maxArgonTime bound what a stored hash may ask for, so that an imported one can't eat the machine.
	maxArgonMemory = 64 * 1024
	maxArgonTime   = 10
	// maxBcryptCost does the same for bcrypt: 15 takes about two seconds.
	maxBcryptCost = 15
	bcryptLength  = 60 // of a hash; bcrypt ignores what follows
	// bcryptMaxPassword is what bcrypt reads of a password; it takes 72 bytes and anything for the 72 bytes alone.
	bcryptMaxPassword = 72
)

// Passwords hashes and checks passwords, a bounded number at a time.
type Passwords struct {
	cost  HashCost
	turns *turns
	dummy secret.Value
}

// NewPasswords makes a Passwords that computes at most atOnce hashes at the same time; further callers wait up to
// maxWait for their turn. New hashes cost as said, and older ones of another cost are renewed when they are used.
func NewPasswords(atOnce int, maxWait time.Duration, cost HashCost) (*Passwords, error) {
	turns, err := newTurns(atOnce, maxWait)
	if err != nil {
		return nil, err
	}
	// The hash of a password that nobody knows: what unknown users are checked against, so that they take as long.
	return &Passwords{turns: turns, cost: cost, dummy: argonHash(rand.Text(), cost)}, nil
}

// Hash returns the argon2id hash of a password in PHC form, or ErrBusy. Other spellings of the password, by RFC 8265, match it too.
func (p *Passwords) Hash(ctx context.Context, password secret.Value) (secret.Value, error) {
	release, err := p.turns.take(ctx)
	if err != nil {
		return secret.Value{}, err
	}
	defer release()
	return argonHash(prepared(password.Reveal()), p.cost), nil
}

// prepared is what is hashed of a password: its OpaqueString (RFC 8265, section 4.2), which doesn't depend on how a device composes
// letters and which spaces it has. A password that has none, because of a control character for example, stays as it is.
func prepared(password string) string {
	if opaque, err := precis.OpaqueString.String(password); err == nil {
		return opaque
	}
	return password
}

// check compares a password with a hash, argon2id or bcrypt: as it was typed, since older hashes are of that, and then prepared. An
// empty hash takes the time of a real one and matches nothing. Where it matches and the hash is not what Hash makes today, renewed is
// the password's new hash. It returns ErrBusy where it did not get to it.
func (p *Passwords) check(ctx context.Context, password, hash secret.Value) (ok bool, renewed secret.Value, err error) {
	release, err := p.turns.take(ctx)
	if err != nil {
		return false, secret.Value{}, err
	}
	defer release()

	typed, opaque := password.Reveal(), prepared(password.Reveal())
	ok, stale := p.matches(typed, hash)
	switch {
	case ok:
		stale = stale || typed != opaque
	case typed != opaque:
		ok, stale = p.matches(opaque, hash)
	}
	if ok && stale {
		renewed = argonHash(opaque, p.cost)
	}
	return ok, renewed, nil
}

// matches reports whether it is the hash of the password, and if so, whether it is of another kind than those made today.
func (p *Passwords) matches(password string, hash secret.Value) (ok, stale bool) {
	switch {
	case hash.Empty():
		_, _ = argonMatches(password, p.dummy.Reveal())
		return false, false
	case strings.HasPrefix(hash.Reveal(), "$2"):
		return bcryptMatches(password, hash.Reveal()), true
	default:
		cost, ok := argonMatches(password, hash.Reveal())
		return ok, cost != p.cost
	}
}

// argonHash returns $argon2id$v=19$m=…,t=…,p=…$salt$hash, base64 without padding.
func argonHash(password string, cost HashCost) secret.Value {
	salt := make([]byte, argonSaltLength)
	_, _ = rand.Read(salt) // never fails: it ends the program instead
	key := argon2.IDKey([]byte(password), salt, cost.Passes, cost.Memory, cost.Lanes, argonKeyLength)
	return secret.New(fmt.Sprintf("$argon2id$v=%d$%s$%s$%s", argon2.Version, cost, base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(key)))
}

// bcryptMatches reports whether it is the hash of the password, and never true for a password longer than bcrypt reads.
func bcryptMatches(password, hash string) bool {
	cost, err := bcrypt.Cost([]byte(hash))
	if err != nil || cost > maxBcryptCost || len(hash) != bcryptLength {
		return false
	}
	err = bcrypt.CompareHashAndPassword([]byte(hash), []byte(password))
	return err == nil && len(password) <= bcryptMaxPassword
}

// argonMatches compares in constant time. A hash that can't be read, or asks for too much, matches nothing.
func argonMatches(password, hash string) (HashCost, bool) {
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return HashCost{}, false
	}
	var cost HashCost
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &cost.Memory, &cost.Passes, &cost.Lanes); err != nil || parts[3] != cost.String() {
		return HashCost{}, false
	}
	salt, saltOK := phcBytes(parts[4])
	want, wantOK := phcBytes(parts[5])
	if !saltOK || !wantOK || len(salt) < argonMinSalt || len(want) < argonSaltLength || len(want) > 2*argonKeyLength ||
		cost.Memory > maxArgonMemory || cost.Passes < 1 || cost.Passes > maxArgonTime || cost.Lanes < 1 {
		return HashCost{}, false
	}
	//nolint:gosec // len(want) is at most 2*argonKeyLength: the condition above
	got := argon2.IDKey([]byte(password), salt, cost.Passes, cost.Memory, cost.Lanes, uint32(len(want)))
	return cost, subtle.ConstantTimeCompare(got, want) == 1
}

// phcBytes decodes base64 without padding in its one spelling; Go's decoder alone takes spare bits and line breaks too.
func phcBytes(text string) ([]byte, bool) {
	decoded, err := base64.RawStdEncoding.DecodeString(text)
	return decoded, err == nil && base64.RawStdEncoding.EncodeToString(decoded) == text
}
