package api_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"strings"
	"testing"

	"accesskeys/internal/auth"
)

// account is a service account with one key pair, made through HTTP.
type account struct {
	h       *harness
	id      string
	kid     string
	alg     auth.Algorithm
	private crypto.Signer
	file    string // the credentials file, as it was answered
}

// newAccount makes one as this caller.
func (h *harness) newAccount(bearer string, alg auth.Algorithm, roles ...auth.Role) *account {
	h.t.Helper()
	if roles == nil {
		roles = []auth.Role{}
	}
	made := h.post("/v1.0/service_accounts", bearer, map[string]any{"name": "of " + string(alg), "roles": roles}).wants(http.StatusOK).json()
	return h.newAccountKey(bearer, made["id"].(string), alg)
}

// newAccountKey adds a key pair to an account.
func (h *harness) newAccountKey(bearer, id string, alg auth.Algorithm) *account {
	h.t.Helper()
	got := h.post("/v1.0/service_accounts/"+id+"/keys", bearer, map[string]any{"algorithm": alg}).wants(http.StatusOK)
	file := got.json()
	block, rest := pem.Decode([]byte(file["private_key"].(string)))
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		h.t.Fatalf("%s: no PEM block PRIVATE KEY", alg)
	}
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		h.t.Fatal(err)
	}
	return &account{h: h, id: id, kid: file["key_id"].(string), alg: alg, private: private.(crypto.Signer), file: string(got.raw)}
}

// public is the public half, as SubjectPublicKeyInfo and in PEM.
func (a *account) public() (der []byte, text string) {
	a.h.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(a.private.Public())
	if err != nil {
		a.h.t.Fatal(err)
	}
	return der, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// signature signs with the private half in a few lines of our own: no library signs what these tests need signed.
func (a *account) signature(input string) []byte {
	a.h.t.Helper()
	digest := sha256.Sum256([]byte(input))
	var made []byte
	var err error
	switch key := a.private.(type) {
	case *rsa.PrivateKey:
		made, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
	case *ecdsa.PrivateKey:
		var r, s *big.Int
		if r, s, err = ecdsa.Sign(rand.Reader, key, digest[:]); err == nil {
			made = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
	case ed25519.PrivateKey:
		made = ed25519.Sign(key, []byte(input))
	}
	if err != nil || made == nil {
		a.h.t.Fatalf("signing for %s: %v", a.alg, err)
	}
	return made
}

func raw64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// signText signs two texts as they stand.
func (a *account) signText(header, claims string) string {
	a.h.t.Helper()
	input := b64(header) + "." + b64(claims)
	return input + "." + raw64(a.signature(input))
}

func (a *account) header() string {
	return fmt.Sprintf(`{"alg":%q,"typ":"JWT","kid":%q}`, a.alg, a.kid)
}

// now is the database's time in whole seconds.
func (h *harness) now() int64 {
	h.t.Helper()
	var now int64
	if _, err := fmt.Sscan(h.text(`SELECT floor(extract(epoch FROM now()))::bigint`), &now); err != nil {
		h.t.Fatal(err)
	}
	return now
}

// claims are a good token's, with changes: a nil value takes a claim out.
func (a *account) claims(changes map[string]any) string {
	a.h.t.Helper()
	now := a.h.now()
	claims := map[string]any{"iss": a.id, "iat": now, "exp": now + 3600}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	text, err := json.Marshal(claims)
	if err != nil {
		a.h.t.Fatal(err)
	}
	return string(text)
}

// token is a good token.
func (a *account) token() string {
	a.h.t.Helper()
	return a.signText(a.header(), a.claims(nil))
}

// accepted fails the test unless the token is taken as this account's over both carriers for JWTs, and refused as an
// access key.
func (a *account) accepted(t *testing.T, h *harness, token string) {
	t.Helper()
	for name, carrier := range carriers {
		req := carrier(token)
		req.method = http.MethodGet
		got := h.send(req)
		if name == "?accesskey=" {
			if wrong := got.diffChallenge("INVALID_CREDENTIALS"); wrong != "" {
				t.Errorf("%s over %s: %s", a.alg, name, wrong)
			}
			continue
		}
		if got.code != http.StatusOK {
			t.Errorf("%s over %s: status %d: %s", a.alg, name, got.code, got.raw)
			continue
		}
		if me := got.json(); me["id"] != a.id || me["type"] != "service_account" {
			t.Errorf("%s over %s: %s", a.alg, name, got.raw)
		}
	}
}

// refused fails the test unless the token is refused over each of the three carriers, by the one 401.
func (h *harness) refused(t *testing.T, name, token string) {
	t.Helper()
	for carrierName, carrier := range carriers {
		req := carrier(token)
		if req.header != nil {
			req.header.Set("Authorization", "Bearer "+headerForm(token))
		}
		req.method = http.MethodGet
		if wrong := h.send(req).diffChallenge("INVALID_CREDENTIALS"); wrong != "" {
			t.Errorf("%s over %s: %s", name, carrierName, wrong)
		}
	}
}

// split takes a token apart.
func split(token string) (header, claims, signature string) {
	parts := strings.Split(token, ".")
	return parts[0], parts[1], parts[2]
}
