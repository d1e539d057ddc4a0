package api_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"accesskeys/internal/auth"
)

// attackers is what the hostile tokens are made from: an account of each algorithm, and what else a caller may have.
type attackers struct {
	*harness
	rs, es, ed *account
	foreign    *account // of the other customer, with all rights there
	deleted    *account // whose key was deleted
	sibling    *account // another key of rs's account
}

func newAttackers(h *harness) *attackers {
	h.t.Helper()
	a := &attackers{
		harness: h,
		rs:      h.newAccount(h.acme.adminJWT, auth.RS256, auth.RoleCustomerAdmin),
		es:      h.newAccount(h.acme.adminJWT, auth.ES256),
		ed:      h.newAccount(h.acme.adminJWT, auth.EdDSA),
		foreign: h.newAccount(h.globex.adminJWT, auth.EdDSA, auth.RoleCustomerAdmin),
	}
	a.deleted = h.newAccountKey(h.acme.adminJWT, a.rs.id, auth.EdDSA)
	a.sibling = h.newAccountKey(h.acme.adminJWT, a.rs.id, auth.RS256)
	h.delete("/v1.0/service_accounts/"+a.rs.id+"/keys/"+a.deleted.kid, h.acme.adminJWT).wants(http.StatusOK)
	return a
}

// confusions: the token chooses its own algorithm (RFC 8725, section 2.1), both ways.
func (a *attackers) confusions() map[string]string {
	made := map[string]string{}
	hmacs := func(name string, by *account, secrets map[string]string) {
		header := b64(fmt.Sprintf(`{"alg":"HS256","typ":"JWT","kid":%q}`, by.kid))
		input := header + "." + b64(by.claims(nil))
		for what, key := range secrets {
			made[name+": HS256 with "+what+" as the secret"] = input + "." + mac(sha256.New, key, input)
		}
		own := b64(by.header()) + "." + b64(by.claims(nil))
		made[name+": HMAC under its own alg"] = own + "." + mac(sha256.New, secrets["the public key in PEM"], own)
		for _, alg := range []string{"none", "None", "NONE", "nOnE", ""} {
			input := b64(fmt.Sprintf(`{"alg":%q,"kid":%q}`, alg, by.kid)) + "." + b64(by.claims(nil))
			_, _, signature := split(by.token())
			made[name+": alg "+alg+" without a signature"] = input + "."
			made[name+": alg "+alg+" with a signature"] = input + "." + signature
		}
		made[name+": no signature"] = own + "."
		for _, alg := range []string{"RS256", "ES256", "EdDSA", "HS256", "RS384", "RS512", "PS256", "ES384", "Ed25519", "Ed448", "eddsa"} {
			if alg != string(by.alg) {
				made[name+": alg "+alg+", signed as ever"] = by.signText(fmt.Sprintf(`{"alg":%q,"typ":"JWT","kid":%q}`, alg, by.kid), by.claims(nil))
			}
		}
		made[name+": no alg"] = by.signText(fmt.Sprintf(`{"kid":%q}`, by.kid), by.claims(nil))
	}
	for _, by := range []*account{a.rs, a.es, a.ed} {
		der, text := by.public()
		hmacs(string(by.alg), by, map[string]string{
			"the public key in PEM": text, "its PEM without the last line break": strings.TrimSpace(text), "its PEM with CRLF": strings.ReplaceAll(text, "\n", "\r\n"),
			"the public key in DER": string(der), "the key's id": by.kid, "the account's id": by.id, "nothing": "", "the server's own secret": jwtSecret,
			"the server's previous secret": jwtSecretPrevious,
		})
	}
	return made
}

// otherKinds: a token for one kind of caller is presented as the other's.
func (a *attackers) otherKinds() map[string]string {
	f := newForger(a.t, a.acme.adminJWT)
	withKid := fmt.Sprintf(`{"alg":"HS256","typ":"JWT","kid":%q}`, a.rs.kid)
	signedAs := func(by *account, header, claims string) string { return by.signText(header, claims) }
	mixed := func(claims string) string {
		return strings.TrimSuffix(f.text(), "}") + "," + strings.TrimPrefix(claims, "{")
	}
	header, _, signature := split(a.acme.adminJWT)
	return map[string]string{
		"an agent's token with a kid":                      f.withHeader(withKid),
		"an agent's token with a kid, old signature":       b64(withKid) + "." + f.payload + "." + f.signature,
		"an agent's token with an account's claims":        f.withText(a.rs.claims(nil)),
		"an agent's token with an account's claims, kid":   signed(b64(withKid), b64(a.rs.claims(nil))),
		"an agent's header over an account's claims":       header + "." + b64(a.rs.claims(nil)) + "." + signature,
		"an account's claims and type":                     f.withText(a.rs.claims(map[string]any{"type": "service_account", "sub": a.rs.id})),
		"an account for an agent":                          signedAs(a.rs, a.rs.header(), f.text()),
		"an account for an agent, iss its own":             signedAs(a.rs, a.rs.header(), strings.Replace(f.text(), `"iss":"accesskeys"`, fmt.Sprintf(`"iss":%q`, a.rs.id), 1)),
		"an account for an agent, kid the agent's":         signedAs(a.rs, fmt.Sprintf(`{"alg":"RS256","typ":"JWT","kid":%q}`, a.acme.admin.ID), f.text()),
		"an account under an agent's header":               signedAs(a.rs, goodHeader, a.rs.claims(nil)),
		"an account for an agent under an agent's header":  signedAs(a.rs, goodHeader, f.text()),
		"an account for an agent, RS256 without kid":       signedAs(a.rs, `{"alg":"RS256","typ":"JWT"}`, f.text()),
		"claims of both, signed by the account":            signedAs(a.rs, a.rs.header(), mixed(a.rs.claims(nil))),
		"iss the service":                                  signedAs(a.rs, a.rs.header(), a.rs.claims(map[string]any{"iss": "accesskeys"})),
		"iss an agent":                                     signedAs(a.rs, a.rs.header(), a.rs.claims(map[string]any{"iss": a.acme.admin.ID})),
		"iss an access key":                                signedAs(a.rs, a.rs.header(), a.rs.claims(map[string]any{"iss": a.acme.key.ID})),
		"iss a customer":                                   signedAs(a.rs, a.rs.header(), a.rs.claims(map[string]any{"iss": a.acme.customer.ID})),
		"kid an access key":                                signedAs(a.rs, fmt.Sprintf(`{"alg":"RS256","kid":%q}`, a.acme.key.ID), a.rs.claims(nil)),
		"kid the account":                                  signedAs(a.rs, fmt.Sprintf(`{"alg":"RS256","kid":%q}`, a.rs.id), a.rs.claims(nil)),
		"the credentials file in a token's place":          a.rs.file,
		"the private key in a token's place, dotted":       b64(a.rs.header()) + "." + b64(a.rs.claims(nil)) + "." + b64(a.rs.file),
		"an access key with two dots":                      a.acme.token + ".x.y",
		"an agent's token signed with the account's PEM":   b64(goodHeader) + "." + f.payload + "." + mac(sha256.New, second(a.rs.public()), b64(goodHeader)+"."+f.payload),
		"an agent's token by the account, its header kept": f.header + "." + f.payload + "." + raw64(a.rs.signature(f.header+"."+f.payload)),
	}
}

func second(_ []byte, text string) string { return text }

// foreigners: keys that are not this account's.
func (a *attackers) foreigners() map[string]string {
	own, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		a.t.Fatal(err)
	}
	stranger := &account{h: a.harness, id: a.rs.id, kid: a.rs.kid, alg: auth.RS256, private: own}
	iss := func(by *account, id string) string { return by.claims(map[string]any{"iss": id}) }
	kid := func(alg auth.Algorithm, kid string) string {
		return fmt.Sprintf(`{"alg":%q,"typ":"JWT","kid":%q}`, alg, kid)
	}
	_, public := stranger.public()
	return map[string]string{
		"another customer's key, our iss":               a.foreign.signText(a.foreign.header(), iss(a.foreign, a.rs.id)),
		"another customer's key, our iss and kid":       a.foreign.signText(kid(auth.EdDSA, a.ed.kid), iss(a.foreign, a.ed.id)),
		"our key, another customer's iss":               a.ed.signText(a.ed.header(), iss(a.ed, a.foreign.id)),
		"our key, another customer's iss and kid":       a.ed.signText(a.foreign.header(), iss(a.ed, a.foreign.id)),
		"our key, another customer's kid":               a.ed.signText(a.foreign.header(), a.ed.claims(nil)),
		"another account's key of our customer":         a.ed.signText(a.ed.header(), iss(a.ed, a.rs.id)),
		"another account's iss of our customer":         a.rs.signText(a.rs.header(), iss(a.rs, a.ed.id)),
		"a deleted key":                                 a.deleted.token(),
		"a deleted key's kid, a live key's signature":   a.ed.signText(kid(auth.EdDSA, a.deleted.kid), iss(a.ed, a.rs.id)),
		"a live key's kid, a deleted key's signature":   a.deleted.signText(kid(auth.EdDSA, a.ed.kid), iss(a.deleted, a.ed.id)),
		"the account's other key under this kid":        a.sibling.signText(a.rs.header(), a.rs.claims(nil)),
		"this key under the account's other kid":        a.rs.signText(a.sibling.header(), a.rs.claims(nil)),
		"a key of nobody's under this kid":              stranger.token(),
		"a key of nobody's, in the header":              stranger.signText(fmt.Sprintf(`{"alg":"RS256","kid":%q,"jwk":{"kty":"RSA","n":%q,"e":"AQAB"}}`, a.rs.kid, raw64(own.N.Bytes())), a.rs.claims(nil)),
		"a key of nobody's, at an address":              stranger.signText(fmt.Sprintf(`{"alg":"RS256","kid":%q,"jku":"https://attacker.example/keys"}`, a.rs.kid), a.rs.claims(nil)),
		"a key of nobody's, as a certificate":           stranger.signText(fmt.Sprintf(`{"alg":"RS256","kid":%q,"x5c":[%q]}`, a.rs.kid, public), a.rs.claims(nil)),
		"a kid of nobody's":                             a.rs.signText(kid(auth.RS256, "7c3f8f7e-9b3d-4c60-8465-b69e9f28b6db"), a.rs.claims(nil)),
		"the nil kid":                                   a.rs.signText(kid(auth.RS256, "00000000-0000-0000-0000-000000000000"), a.rs.claims(nil)),
		"the kid in capitals":                           a.rs.signText(kid(auth.RS256, strings.ToUpper(a.rs.kid)+""), strings.ToUpper(a.rs.claims(nil))),
		"the kid of SQL":                                a.rs.signText(kid(auth.RS256, "' OR 1=1 --"), a.rs.claims(nil)),
		"the kid a path":                                a.rs.signText(kid(auth.RS256, "../../../../dev/null"), a.rs.claims(nil)),
		"the kid with NUL":                              a.rs.signText(`{"alg":"RS256","kid":"`+a.rs.kid+`\u0000"}`, a.rs.claims(nil)),
		"the kid twice":                                 a.rs.signText(fmt.Sprintf(`{"alg":"RS256","kid":%q,"kid":%q}`, a.foreign.kid, a.rs.kid), a.rs.claims(nil)),
		"no kid":                                        a.rs.signText(`{"alg":"RS256","typ":"JWT"}`, a.rs.claims(nil)),
		"a kid among the claims":                        a.rs.signText(`{"alg":"RS256","typ":"JWT"}`, a.rs.claims(map[string]any{"kid": a.rs.kid})),
		"the right signature over another's claims":     transplant(a.rs.token(), a.ed.token()),
		"the right signature, another's header":         b64(a.ed.header()) + a.rs.token()[strings.IndexByte(a.rs.token(), '.'):],
		"claims changed, signature kept":                transplant(a.rs.signText(a.rs.header(), a.rs.claims(map[string]any{"x": 1})), a.rs.token()),
		"a header member added, signature kept":         b64(strings.Replace(a.rs.header(), "{", `{"x":1,`, 1)) + a.rs.token()[strings.IndexByte(a.rs.token(), '.'):],
		"two good tokens, one after the other":          a.rs.token() + "." + a.rs.token(),
		"a good token and padding":                      a.rs.token() + "==",
		"a good token and a line break in its header":   a.rs.token()[:4] + "\n" + a.rs.token()[4:],
		"a good token, its spare bits changed":          spareBits(a.ed.token()),
		"a good token over its length":                  a.ed.signText(a.ed.header(), a.ed.claims(map[string]any{"x": strings.Repeat("x", 9<<10)})),
		"a header critical about what nobody knows":     a.rs.signText(strings.Replace(a.rs.header(), "{", `{"crit":["x"],"x":1,`, 1), a.rs.claims(nil)),
		"a header with an unencoded payload (RFC 7797)": a.rs.signText(strings.Replace(a.rs.header(), "{", `{"b64":false,"crit":["b64"],`, 1), a.rs.claims(nil)),
		"a header with compressed claims":               a.rs.signText(strings.Replace(a.rs.header(), "{", `{"zip":"DEF",`, 1), a.rs.claims(nil)),
		"a header with nested claims":                   a.rs.signText(strings.Replace(a.rs.header(), "{", `{"cty":"JWT",`, 1), a.rs.claims(nil)),
	}
}

// transplant is the one token with the other's signature.
func transplant(token, other string) string {
	header, claims, _ := split(token)
	_, _, signature := split(other)
	return header + "." + claims + "." + signature
}

// signatures: what is wrong with them alone.
func (a *attackers) signatures() map[string]string {
	made := map[string]string{}
	for _, by := range []*account{a.rs, a.es, a.ed} {
		input := b64(by.header()) + "." + b64(by.claims(nil))
		good := by.signature(input)
		put := func(name string, signature []byte) { made[string(by.alg)+": "+name] = input + "." + raw64(signature) }
		for _, bit := range []int{0, 7, 100, 255, 256, 300, len(good)*8 - 1} {
			altered := bytes.Clone(good)
			altered[bit/8] ^= 1 << (bit % 8)
			put(fmt.Sprintf("bit %d altered", bit), altered)
		}
		put("a byte less", good[:len(good)-1])
		put("a byte more", append(bytes.Clone(good), 0))
		put("a zero before", append([]byte{0}, good...))
		put("half", good[:len(good)/2])
		put("twice", append(bytes.Clone(good), good...))
		put("empty", nil)
		put("one byte", []byte{1})
		put("zeroes", make([]byte, len(good)))
		put("ones", bytes.Repeat([]byte{0xff}, len(good)))
		put("of the claims alone", by.signature(b64(by.claims(nil))))
		put("of the decoded parts", by.signature(by.header()+"."+by.claims(nil)))
		reversed := bytes.Clone(good)
		slices.Reverse(reversed)
		put("in the other byte order", reversed)
	}
	a.ownSignatures(made)
	return made
}

// ownSignatures: what can go wrong for one algorithm only.
func (a *attackers) ownSignatures(made map[string]string) {
	put := func(by *account, name string, sign func(input string, digest []byte) ([]byte, error)) {
		input := b64(by.header()) + "." + b64(by.claims(nil))
		digest := sha256.Sum256([]byte(input))
		signature, err := sign(input, digest[:])
		if err != nil {
			a.t.Fatalf("%s: %v", name, err)
		}
		made[string(by.alg)+": "+name] = input + "." + raw64(signature)
	}
	ec, n := a.es.private.(*ecdsa.PrivateKey), elliptic.P256().Params().N
	pair := func(r, s *big.Int) []byte {
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	put(a.es, "in DER", func(_ string, d []byte) ([]byte, error) { return ecdsa.SignASN1(rand.Reader, ec, d) })
	put(a.es, "r and s exchanged", func(_ string, d []byte) ([]byte, error) {
		r, s, err := ecdsa.Sign(rand.Reader, ec, d)
		return pair(s, r), err
	})
	put(a.es, "r zero", func(_ string, d []byte) ([]byte, error) {
		_, s, err := ecdsa.Sign(rand.Reader, ec, d)
		return pair(new(big.Int), s), err
	})
	put(a.es, "s zero", func(_ string, d []byte) ([]byte, error) {
		r, _, err := ecdsa.Sign(rand.Reader, ec, d)
		return pair(r, new(big.Int)), err
	})
	put(a.es, "r and s the order", func(string, []byte) ([]byte, error) { return pair(n, n), nil })
	put(a.es, "r and s one", func(string, []byte) ([]byte, error) { return pair(big.NewInt(1), big.NewInt(1)), nil })
	put(a.es, "over SHA-512", func(input string, _ []byte) ([]byte, error) {
		d := sha512.Sum512([]byte(input))
		r, s, err := ecdsa.Sign(rand.Reader, ec, d[:])
		return pair(r, s), err
	})
	rs := a.rs.private.(*rsa.PrivateKey)
	put(a.rs, "by PSS", func(_ string, d []byte) ([]byte, error) {
		return rsa.SignPSS(rand.Reader, rs, crypto.SHA256, d, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	})
	put(a.rs, "over SHA-512", func(input string, _ []byte) ([]byte, error) {
		d := sha512.Sum512([]byte(input))
		return rsa.SignPKCS1v15(rand.Reader, rs, crypto.SHA512, d[:])
	})
	put(a.rs, "of the bare digest", func(_ string, d []byte) ([]byte, error) { return rsa.SignPKCS1v15(rand.Reader, rs, 0, d) })
	put(a.rs, "one, which is its own root", func(string, []byte) ([]byte, error) { return append(make([]byte, 255), 1), nil })
	put(a.rs, "the modulus added", func(input string, _ []byte) ([]byte, error) {
		sum := new(big.Int).Add(new(big.Int).SetBytes(a.rs.signature(input)), rs.N)
		return sum.Bytes(), nil
	})
	ed := a.ed.private.(ed25519.PrivateKey)
	put(a.ed, "of the prehashed kind", func(input string, _ []byte) ([]byte, error) {
		d := sha512.Sum512([]byte(input))
		return ed.Sign(nil, d[:], crypto.SHA512)
	})
	put(a.ed, "with a context", func(input string, _ []byte) ([]byte, error) {
		return ed.Sign(nil, []byte(input), &ed25519.Options{Context: "x"})
	})
	put(a.ed, "the order added to S", func(input string, _ []byte) ([]byte, error) {
		order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
		signature := ed25519.Sign(ed, []byte(input))
		s := slices.Clone(signature[32:])
		slices.Reverse(s)
		sum := new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
		slices.Reverse(sum)
		return append(signature[:32:32], sum...), nil
	})
}

// claimsOnly: signed rightly, with claims that are not to be taken.
func (a *attackers) claimsOnly() map[string]string {
	now := a.now()
	made := map[string]string{}
	for name, change := range map[string]map[string]any{
		"iss missing": {"iss": nil}, "iss empty": {"iss": ""}, "iss a list": {"iss": []string{a.rs.id}}, "iss a number": {"iss": 1},
		"iat missing": {"iat": nil}, "exp missing": {"exp": nil}, "exp a second too far": {"iat": now, "exp": now + 3601},
		"expired": {"iat": now - 7200, "exp": now - 3600}, "a day": {"exp": now + 86400}, "a year": {"exp": now + 365*86400},
		"iat in an hour": {"iat": now + 3600, "exp": now + 7000}, "nbf in an hour": {"nbf": now + 3600}, "exp a string": {"exp": fmt.Sprint(now + 60)},
		"exp a fraction": {"exp": float64(now) + 60.5}, "iat in milliseconds": {"iat": now * 1000, "exp": now*1000 + 60}, "exp before iat": {"exp": now - 1},
		"aud another": {"aud": "https://other.example"}, "aud a list": {"aud": []string{"https://other.example"}}, "aud empty": {"aud": ""},
	} {
		made["claims: "+name] = a.rs.signText(a.rs.header(), a.rs.claims(change))
	}
	made["claims: exp twice"] = a.rs.signText(a.rs.header(), strings.Replace(a.rs.claims(nil), "{", fmt.Sprintf(`{"exp":%d,`, now+60), 1))
	made["claims: iss twice"] = a.rs.signText(a.rs.header(), strings.Replace(a.rs.claims(nil), "{", fmt.Sprintf(`{"iss":%q,`, a.foreign.id), 1))
	made["claims: a list"] = a.rs.signText(a.rs.header(), "["+a.rs.claims(nil)+"]")
	made["claims: null"] = a.rs.signText(a.rs.header(), "null")
	made["claims: twice"] = a.rs.signText(a.rs.header(), a.rs.claims(nil)+a.rs.claims(nil))
	made["claims: not UTF-8"] = a.rs.signText(a.rs.header(), strings.Replace(a.rs.claims(nil), "{", "{\"x\":\"\xff\",", 1))
	return made
}

// Anything else is the same 401 as ever. A token for one kind of caller is never taken for the other (tests for HS/RS confusion both ways,
// kid of another customer, of a deleted key). The controls: good tokens of all three algorithms, put together by the same code, are accepted
// before, between and after; and the cause of each refusal is one that its class is meant to have.
func TestHostileAssertionIsRefusedOverEveryCarrier(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	a := newAttackers(h)
	control := func() {
		t.Helper()
		for _, by := range []*account{a.rs, a.es, a.ed, a.foreign, a.sibling} {
			by.accepted(t, h, by.token())
			by.accepted(t, h, by.signText(fmt.Sprintf(`{"x":[1],"kid":%q,"alg":%q}`, by.kid, by.alg), by.claims(map[string]any{"scope": "x", "exp": h.now() + 60})))
		}
		h.get("/v1.0/me", h.acme.adminJWT).wants(http.StatusOK)
	}
	control()
	distinct := map[string]bool{}
	for _, class := range []struct {
		tokens map[string]string
		causes []string
	}{
		{a.confusions(), []string{"bad signature", "malformed"}},
		{a.otherKinds(), []string{"malformed", "bad signature", "bad claims", "unknown"}},
		{a.foreigners(), []string{"malformed", "bad signature", "bad claims", "unknown", "deleted"}},
		{a.signatures(), []string{"bad signature"}},
		{a.claimsOnly(), []string{"bad claims", "expired", "malformed"}},
	} {
		for name, token := range class.tokens {
			distinct[token] = true
			if cause := h.cause("token=" + url.QueryEscape(token)); !slices.Contains(class.causes, cause) {
				t.Errorf("%s: refused as %q, want one of %q", name, cause, class.causes)
			}
			h.refused(t, name, token)
		}
		control()
	}
	if len(distinct) < 150 {
		t.Errorf("only %d different tokens", len(distinct))
	}
}

// The negative (r, n-s) of an ECDSA signature is one too, by definition: nothing here tells tokens apart by their
// signatures, so it is taken, and gives no more than the token that it was made from.
func TestTheOtherHalfOfAnECDSASignatureGivesNothingMore(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	es := h.newAccount(h.acme.adminJWT, auth.ES256)
	input := b64(es.header()) + "." + b64(es.claims(nil))
	good := es.signature(input)
	s := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(good[32:]))
	other := append(good[:32:32], s.FillBytes(make([]byte, 32))...)
	es.accepted(t, h, input+"."+raw64(other))
	h.get("/v1.0/accesskeys", input+"."+raw64(other)).refuses(http.StatusForbidden, "PERMISSION_DENIED")
}

// A key pair's halves can't be swapped: the private key as a file of PEM is no public key of anybody's.
func TestPrivateKeyIsRefusedWhereAPublicOneBelongs(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	rs := h.newAccount(h.acme.adminJWT, auth.RS256)
	private := h.post("/v1.0/service_accounts/"+rs.id+"/keys", h.acme.adminJWT, "{}").wants(http.StatusOK).json()["private_key"].(string)
	block, _ := pem.Decode([]byte(private))
	for name, text := range map[string]string{
		"as it is": private, "under the other name": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: block.Bytes})),
	} {
		got := h.post("/v1.0/service_accounts/"+rs.id+"/keys", h.acme.adminJWT, map[string]any{"public_key": text})
		got.refuses(http.StatusBadRequest, "INVALID_ARGUMENT")
		if strings.Contains(string(got.raw), strings.Split(private, "\n")[1]) {
			t.Errorf("%s: the answer repeats it", name)
		}
	}
}
