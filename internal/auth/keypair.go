package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"accesskeys/internal/secret"
)

// Algorithm is what a service account signs its tokens with. It belongs to the key; a token can't choose.
type Algorithm string

// The algorithms.
const (
	RS256 Algorithm = "RS256"
	ES256 Algorithm = "ES256"
	EdDSA Algorithm = "EdDSA"
)

// Algorithms are all algorithms, the one for new key pairs first.
func Algorithms() []Algorithm { return []Algorithm{RS256, ES256, EdDSA} }

const (
	// Below 2048 bits RSA is weak (RFC 7518, section 3.3). Above, each verification costs more, at 3072 bits seven times:
	// who brings a key may choose so, up to here.
	minRSABits  = 2048
	maxRSABits  = 4096
	rsaExponent = 65537
)

// ErrUnsupportedKey means that a public key is none, or is weak, or is of a kind that is not taken.
var ErrUnsupportedKey = errors.New("the public key must be RSA of 2048 to 4096 bits with exponent 65537, P-256, or Ed25519, as a PEM block PUBLIC KEY")

// PublicKey is the public half of a key pair, with its one algorithm.
type PublicKey struct {
	Algorithm Algorithm
	DER       []byte // SubjectPublicKeyInfo
}

// KeyPairs makes key pairs, a bounded number at a time: finding RSA's primes takes a core for a while.
type KeyPairs struct{ turns *turns }

// NewKeyPairs makes a KeyPairs that makes at most atOnce pairs at the same time; further callers wait up to maxWait.
func NewKeyPairs(atOnce int, maxWait time.Duration) (*KeyPairs, error) {
	turns, err := newTurns(atOnce, maxWait)
	return &KeyPairs{turns: turns}, err
}

// New makes a key pair. The private half is PKCS #8 in PEM. It returns ErrBusy where it did not get to it.
func (p *KeyPairs) New(ctx context.Context, algorithm Algorithm) (secret.Value, PublicKey, error) {
	release, err := p.turns.take(ctx)
	if err != nil {
		return secret.Value{}, PublicKey{}, err
	}
	defer release()
	return newKeyPair(algorithm)
}

func newKeyPair(algorithm Algorithm) (private secret.Value, public PublicKey, err error) {
	var key crypto.Signer
	switch algorithm {
	case RS256:
		key, err = rsa.GenerateKey(rand.Reader, minRSABits)
	case ES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case EdDSA:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("there is no algorithm %q", algorithm)
	}
	if err != nil {
		return secret.Value{}, PublicKey{}, fmt.Errorf("making a key pair: %w", err)
	}
	privateDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return secret.Value{}, PublicKey{}, fmt.Errorf("encoding a private key: %w", err)
	}
	publicDER, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return secret.Value{}, PublicKey{}, fmt.Errorf("encoding a public key: %w", err)
	}
	encoded := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateDER})
	return secret.New(string(encoded)), PublicKey{Algorithm: algorithm, DER: publicDER}, nil
}

// ParsePublicKey reads a public key that a caller brings, in PEM. It returns ErrUnsupportedKey for everything else.
func ParsePublicKey(text string) (PublicKey, error) {
	// The decoder skips whatever stands before the first block that it can read, broken blocks too.
	text = strings.Trim(text, " \t\r\n")
	if !strings.HasPrefix(text, "-----BEGIN PUBLIC KEY-----") || strings.Count(text, "-----BEGIN") != 1 {
		return PublicKey{}, ErrUnsupportedKey
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" || len(block.Headers) != 0 || len(rest) != 0 {
		return PublicKey{}, ErrUnsupportedKey
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return PublicKey{}, ErrUnsupportedKey
	}
	algorithm, ok := algorithmOf(key)
	if !ok {
		return PublicKey{}, ErrUnsupportedKey
	}
	// Encoded anew: what is stored has one form.
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return PublicKey{}, ErrUnsupportedKey
	}
	return PublicKey{Algorithm: algorithm, DER: der}, nil
}

// algorithmOf tells a fit key's algorithm.
func algorithmOf(key crypto.PublicKey) (Algorithm, bool) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		bits := k.N.BitLen()
		return RS256, bits >= minRSABits && bits <= maxRSABits && k.E == rsaExponent
	case *ecdsa.PublicKey:
		return ES256, k.Curve == elliptic.P256()
	case ed25519.PublicKey:
		return EdDSA, len(k) == ed25519.PublicKeySize && !smallOrder(k)
	default:
		return "", false
	}
}

// PEM is the key as callers bring and see it.
func (k PublicKey) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.DER}))
}

// signingMethod is the one method of golang-jwt's that an algorithm means.
func (a Algorithm) signingMethod() (jwt.SigningMethod, bool) {
	switch a {
	case RS256:
		return jwt.SigningMethodRS256, true
	case ES256:
		return jwt.SigningMethodES256, true
	case EdDSA:
		return jwt.SigningMethodEdDSA, true
	default:
		return nil, false
	}
}

// smallOrder reports whether anybody can sign for this key: under one of the few points whose order is at most 8, a
// signature that needs no private key verifies for one message in eight.
func smallOrder(key ed25519.PublicKey) bool {
	const messages = 128
	signature := make([]byte, ed25519.SignatureSize)
	signature[0] = 1 // R is the neutral point, S is zero
	for i := range byte(messages) {
		if ed25519.Verify(key, []byte{i}, signature) {
			return true
		}
	}
	return false
}
