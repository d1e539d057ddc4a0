package api_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"accesskeys/internal/auth"
)

// keyOfAccountShape is a key's body, byte for byte but for its id and times; the times are the groups.
func keyOfAccountShape(account string, alg auth.Algorithm, public string) *regexp.Regexp {
	return regexp.MustCompile(`^\{"id":"` + reUUID + `","account_id":"` + account + `","algorithm":"` + string(alg) + `","public_key":"` +
		regexp.QuoteMeta(strings.ReplaceAll(public, "\n", `\n`)) + `","tm_create":"(` + reTime + `)","tm_update":"(` + reTime + `)","tm_delete":"(` + reTime + `)"\}$`)
}

// POST keys with no body makes a pair (RSA 2048 by default ...) and answers, once, the file that Voximplant users know: {"account_id,
// "key_id", "private_key"} (PKCS#8 PEM)". The list shows the public half of the very pair.
func TestNewKeyPairIsTheFileThatSignsTokens(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	a := h.newAccount(h.acme.adminJWT, auth.EdDSA)
	keys := "/v1.0/service_accounts/" + a.id + "/keys"
	h.delete(keys+"/"+a.kid, h.acme.adminJWT).wants(http.StatusOK)
	h.get(keys, h.acme.adminJWT).same(lastPage())
	file := regexp.MustCompile(`^\{"account_id":"` + a.id + `","key_id":"(` + reUUID + `)","private_key":"-----BEGIN PRIVATE KEY-----\\n[0-9A-Za-z+/=\\n]+` +
		`\\n-----END PRIVATE KEY-----\\n"\}$`)
	listed := []string{}
	for _, step := range []struct {
		body any
		alg  auth.Algorithm
	}{
		{nil, auth.RS256},
		{`{"algorithm":null,"public_key":null}`, auth.RS256},
		{`{"algorithm":"RS256"}`, auth.RS256},
		{`{"algorithm":"ES256"}`, auth.ES256},
		{`{"algorithm":"EdDSA"}`, auth.EdDSA},
	} {
		got := h.post(keys, h.acme.adminJWT, step.body).wants(http.StatusOK)
		found := file.FindSubmatch(got.raw)
		if found == nil {
			t.Fatalf("%v: the answer has another shape (it holds a private key, so it is not shown)", step.body)
		}
		block, _ := pem.Decode([]byte(got.json()["private_key"].(string)))
		private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		by := &account{h: h, id: a.id, kid: string(found[1]), alg: step.alg, private: private.(crypto.Signer)}
		by.accepted(t, h, by.token())
		_, public := by.public()
		top := h.get(keys+"?page_size=1", h.acme.adminJWT).wants(http.StatusOK)
		inner, _ := strings.CutPrefix(string(top.raw), `{"result":[`)
		inner, _, _ = strings.Cut(inner, `],"next_page_token"`)
		shape := keyOfAccountShape(a.id, step.alg, public)
		if m := shape.FindStringSubmatch(inner); m == nil || m[1] != m[2] || m[3] != sentinel || !strings.Contains(inner, by.kid) {
			t.Errorf("%v: listed as %s\nwant %s", step.body, inner, shape)
		}
		listed = append([]string{inner}, listed...)
	}
	h.get(keys, h.acme.adminJWT).same(lastPage(listed...))
	for field, values := range map[string][]string{
		"algorithm":  {`"HS256"`, `"none"`, `"rs256"`, `""`, `1`, `["RS256"]`},
		"public_key": {`""`, `1`, `["x"]`, `"-----BEGIN PUBLIC KEY-----"`, `"` + strings.Repeat("x", 4097) + `"`},
	} {
		for _, value := range values {
			refusedFields(t, h.post(keys, h.acme.adminJWT, `{"`+field+`":`+value+`}`), field)
		}
	}
	h.get(keys, h.acme.adminJWT).same(lastPage(listed...))
}

// With {"public_key: "<PEM>"} the caller keeps its private key; weak or odd keys, which auth has all of, are refused". The body of the answer has the public half
// and nothing secret; an algorithm that is named has to be the key's own.
func TestBroughtKeySignsTokensAndItsAlgorithmIsItsOwn(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	a := h.newAccount(h.acme.adminJWT, auth.EdDSA)
	keys := "/v1.0/service_accounts/" + a.id + "/keys"
	large, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	for _, alg := range auth.Algorithms() {
		by := h.newAccount(h.acme.adminJWT, alg) // whose key comes to another account
		by.id = a.id
		if alg == auth.RS256 {
			by.private = large
		}
		_, public := by.public()
		for _, wrong := range auth.Algorithms() {
			if wrong != by.alg {
				h.post(keys, h.acme.adminJWT, map[string]any{"public_key": public, "algorithm": wrong}).refuses(http.StatusBadRequest, "INVALID_ARGUMENT")
			}
		}
		got := h.post(keys, h.acme.adminJWT, map[string]any{"public_key": " " + strings.ReplaceAll(public, "\n", "\r\n")})
		create, update, deleted := got.times(keyOfAccountShape(a.id, by.alg, public))
		if create != update || deleted != sentinel {
			t.Errorf("%s: times of %s", by.alg, got.raw)
		}
		by.kid = got.json()["id"].(string)
		by.accepted(t, h, by.token())
		named := h.post(keys, h.acme.adminJWT, map[string]any{"public_key": public, "algorithm": by.alg}).wants(http.StatusOK).json()
		if named["id"] == by.kid {
			t.Errorf("%s: the same id twice", by.alg)
		}
	}
	odd, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, public := (&account{h: h, private: odd}).public()
	got := h.post(keys, h.acme.adminJWT, map[string]any{"public_key": public}).refuses(http.StatusBadRequest, "INVALID_ARGUMENT")
	equalJSON(t, got.failure()["details"], []any{map[string]any{
		"field": "public_key", "message": "must be RSA of 2048 to 4096 bits with exponent 65537, P-256 or Ed25519, as a PEM block PUBLIC KEY",
	}})
}

// At most 10 live keys an account, however they are added: 409. A deleted key makes room, and another account, also the other customer's, has
// its own ten.
func TestAccountHasAtMostTenLiveKeysHoweverTheyAreAdded(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	made := h.post("/v1.0/service_accounts", h.acme.adminJWT, "").wants(http.StatusOK).json()
	keys := "/v1.0/service_accounts/" + made["id"].(string) + "/keys"
	add := request{method: http.MethodPost, path: keys, body: `{"algorithm":"EdDSA"}`, header: bearing(h.acme.adminJWT)}
	if codes := statuses(atOnce(t, []*harness{h, h.instance()}, slices.Repeat([]request{add}, 11)...)); codes[200] != 10 || codes[409] != 1 {
		t.Fatalf("eleven at once: %v", codes)
	}
	_, public := h.newAccount(h.globex.adminJWT, auth.EdDSA).public()
	full := func() {
		t.Helper()
		for _, body := range []any{nil, `{"algorithm":"ES256"}`, map[string]any{"public_key": public}} {
			h.post(keys, h.acme.adminJWT, body).conflicts("FAILED_PRECONDITION", "TOO_MANY_KEYS")
		}
	}
	full()
	listed, _ := h.get(keys, h.acme.adminJWT).keyIDs()
	h.delete(keys+"/"+listed[4], h.acme.adminJWT).wants(http.StatusOK)
	h.send(add).wants(http.StatusOK)
	full()
	h.newAccount(h.acme.adminJWT, auth.EdDSA)
}

// A deleted key, account or customer ends its tokens on every instance from the very answer on; what was not deleted goes on, so that keys
// rotate without a gap: while the new one comes and the old one goes, there is always a token that works, on any instance.
func TestTokensEndWithTheirKeyAccountAndCustomerOnEveryInstance(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	other := h.instance()
	const accounts = "/v1.0/service_accounts/"
	for _, alg := range auth.Algorithms() {
		first := h.newAccount(h.acme.adminJWT, alg)
		second, sibling := h.newAccountKey(h.acme.adminJWT, first.id, alg), h.newAccount(h.acme.adminJWT, alg)
		foreign := h.newAccount(h.globex.adminJWT, alg)
		one, two, three := first.token(), second.token(), sibling.token()
		for _, server := range []*harness{h, other} {
			first.accepted(t, server, one)
			second.accepted(t, server, two)
		}
		keys := accounts + first.id + "/keys/"
		gone := h.delete(keys+first.kid, h.acme.adminJWT).wants(http.StatusOK).json()
		if gone["id"] != first.kid || gone["tm_delete"] == sentinel || gone["tm_delete"] != gone["tm_update"] {
			t.Errorf("the deleted key: %v", gone)
		}
		for _, server := range []*harness{other, h} {
			server.refused(t, string(alg)+", its key deleted", one)
			second.accepted(t, server, two)
		}
		// Nor is a key there under another account's path.
		for _, absent := range []string{first.kid, nobody, sibling.kid, foreign.kid} {
			h.delete(keys+absent, h.acme.adminJWT).refuses(http.StatusNotFound, "SERVICE_ACCOUNT_KEY_NOT_FOUND")
		}
		foreign.accepted(t, h, foreign.token())
		other.delete(accounts+first.id, h.acme.adminJWT).wants(http.StatusOK)
		for _, server := range []*harness{h, other} {
			server.refused(t, string(alg)+", its account deleted", two)
			sibling.accepted(t, server, three)
		}
		for _, req := range []request{
			{method: http.MethodGet, path: "/keys"}, {method: http.MethodPost, path: "/keys"}, {method: http.MethodDelete, path: "/keys/" + second.kid},
		} {
			req.path, req.header = accounts+first.id+req.path, bearing(h.acme.adminJWT)
			h.send(req).refuses(http.StatusNotFound, "SERVICE_ACCOUNT_NOT_FOUND")
		}
	}
	// An account may end itself by the very token that it presents.
	own := h.newAccount(h.acme.adminJWT, auth.EdDSA, auth.RoleCustomerAdmin)
	token := own.token()
	h.delete(accounts+own.id, token).wants(http.StatusOK)
	other.refused(t, "deleted by itself", token)

	ours, theirs := h.newAccount(h.acme.adminJWT, auth.EdDSA), h.newAccount(h.globex.adminJWT, auth.EdDSA)
	h.delete("/v1.0/customers/"+h.acme.customer.ID.String(), h.globex.superJWT).wants(http.StatusOK)
	other.refused(t, "its customer deleted", ours.token())
	theirs.accepted(t, other, theirs.token())
}

// The private key is stored nowhere. Every table and the whole log are searched for every pair's private half, as text, bytes and numbers;
// the control is the public half, which the tables do hold.
func TestPrivateKeysAreStoredNowhere(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	sinks := &aviary{harness: h}
	var flock []canary
	publics := map[string]string{}
	for _, alg := range auth.Algorithms() {
		a := h.newAccount(h.acme.adminJWT, alg)
		token := a.token()
		sinks.ask(h, request{method: http.MethodGet, path: "/v1.0/me?token=" + token}).wants(http.StatusOK)
		keys := "/v1.0/service_accounts/" + a.id + "/keys"
		sinks.ask(h, request{method: http.MethodGet, path: keys, header: bearing(token)})
		sinks.ask(h, request{method: http.MethodGet, path: keys, header: bearing(h.acme.adminJWT)}).wants(http.StatusOK)
		sinks.ask(h, request{method: http.MethodPost, path: keys, body: a.file, header: bearing(h.acme.adminJWT)})
		sinks.ask(h, request{method: http.MethodPost, path: "/v1.0/accesskeys?token=" + token, body: a.file + "x"})
		secretBytes := map[string][]byte{}
		switch key := a.private.(type) {
		case *rsa.PrivateKey:
			secretBytes["d"], secretBytes["p"], secretBytes["q"] = key.D.Bytes(), key.Primes[0].Bytes(), key.Primes[1].Bytes()
		case *ecdsa.PrivateKey:
			scalar, err := key.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			secretBytes["scalar"] = scalar
		case ed25519.PrivateKey:
			secretBytes["seed"] = key.Seed()
		}
		for name, b := range secretBytes {
			c := newCanary(fmt.Sprint(alg, "'s ", name), string(b))
			c.forms = slices.DeleteFunc(c.forms, func(form string) bool { return len(form) < 16 })
			flock = append(flock, c)
		}
		// As the file has it: the middle of each line.
		for i, line := range strings.Split(a.file, `\n`) {
			if len(line) == 64 {
				flock = append(flock, newCanary(fmt.Sprint(alg, "'s line ", i), line[40:]))
			}
		}
		flock = append(flock, newCanary(string(alg)+"'s token", token[strings.LastIndexByte(token, '.')+1:]))
		der, _ := a.public()
		publics[string(alg)] = fmt.Sprintf("%x", der)
	}
	if len(flock) < 3*4 {
		t.Fatalf("only %d things to search for", len(flock))
	}
	places := map[string]string{"log": sinks.logged(), "tables": sinks.tables(), "answers": sinks.answers.String()}
	for name, text := range places {
		for _, c := range flock {
			if c.in(text) != "" {
				t.Errorf("the %s hold %s", name, c.name)
			}
			if c.in(text+c.forms[0]) == "" {
				t.Errorf("%s would not be found", c.name)
			}
		}
	}
	for alg, public := range publics {
		if !strings.Contains(places["tables"], public) {
			t.Errorf("%s: not even the public key is found in the tables", alg)
		}
	}
}
