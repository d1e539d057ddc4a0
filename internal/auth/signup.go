package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"math/big"

	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// SignupTokenPrefix starts every temp token, which can so be told from an access key.
const SignupTokenPrefix = "su_"

// signupCodes is how many codes there are: those of six digits.
const signupCodes = 1_000_000

// Signup is the two secrets that complete a sign-up together. Who asked has the temp token; who reads the mail of the
// address has the code.
type Signup struct {
	TempToken secret.Value
	Code      secret.Value
}

// NewSignup draws both from the system's generator: the temp token has 190 random bits, the code is uniform over all of
// six digits.
func NewSignup() Signup {
	n, err := rand.Int(rand.Reader, big.NewInt(signupCodes))
	if err != nil {
		panic(err) // the system's generator ends the program before it fails
	}
	return Signup{TempToken: drawToken(SignupTokenPrefix), Code: secret.New(fmt.Sprintf("%06d", n))}
}

// TempTokenHash is what the sign-up is found by.
func (s Signup) TempTokenHash() store.TokenHash { return sha256.Sum256([]byte(s.TempToken.Reveal())) }

// CodeHash is what the code is checked by.
//
// SECURITY: a million codes are hashed in a second. So the temp token, which is stored nowhere, is hashed with the code:
// who reads the table can't find it out.
func (s Signup) CodeHash() store.TokenHash {
	return sha256.Sum256([]byte(s.TempToken.Reveal() + " " + s.Code.Reveal()))
}
