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
	"sync"
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
	h.get(keys, h.acme.adminJWT).same(`{"result":[],"next_page_token":null}`)
	file := regexp.MustCompile(`^\{"account_id":"` + a.id + `","key_id":"(` + reUUID + `)","private_key":"-----BEGIN PRIVATE KEY-----\\n[0-9A-Za-z+/=\\n]+` +
		`\\n-----END PRIVATE KEY-----\\n"\}$`)
	listed := []string{}
	for _, step := range []struct {
		body any
		alg  auth.Algorithm
	}{
		{nil, auth.RS256},
		{"", auth.RS256},
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
		if key, isRSA := private.(*rsa.PrivateKey); isRSA && key.N.BitLen() != 2048 {
			t.Errorf("RSA of %d bits", key.N.BitLen())
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
	h.get(keys, h.acme.adminJWT).same(`{"result":[` + strings.Join(listed, ",") + `],"next_page_token":null}`)
	for field, bodies := range map[string][]string{
		"algorithm":  {`{"algorithm":"HS256"}`, `{"algorithm":"none"}`, `{"algorithm":"rs256"}`, `{"algorithm":""}`, `{"algorithm":1}`, `{"algorithm":["RS256"]}`},
		"public_key": {`{"public_key":""}`, `{"public_key":1}`, `{"public_key":["x"]}`, `{"public_key":"-----BEGIN PUBLIC KEY-----"}`, `{"public_key":"` + strings.Repeat("x", 4097) + `"}`},
	} {
		for _, body := range bodies {
			got := h.post(keys, h.acme.adminJWT, body)
			got.refuses(http.StatusBadRequest, "INVALID_ARGUMENT")
			details := got.json()["error"].(map[string]any)["details"].([]any)
			if len(details) != 1 || details[0].(map[string]any)["field"] != field {
				t.Errorf("%.80s: details %v", body, details)
			}
		}
	}
	h.get(keys, h.acme.adminJWT).same(`{"result":[` + strings.Join(listed, ",") + `],"next_page_token":null}`)
}

// With {"public_key: "<PEM>"} the caller keeps its private key; weak or odd keys are refused". The body of the answer has the public half
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
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, by := range []*account{
		{h: h, id: a.id, alg: auth.RS256, private: large}, {h: h, id: a.id, alg: auth.ES256, private: curve}, {h: h, id: a.id, alg: auth.EdDSA, private: edwards},
	} {
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
	curve384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for _, odd := range []*account{{h: h, private: curve384}, {h: h, private: weak}} {
		_, public := odd.public()
		got := h.post(keys, h.acme.adminJWT, map[string]any{"public_key": public})
		got.refuses(http.StatusBadRequest, "INVALID_ARGUMENT")
		if details := fmt.Sprint(got.json()["error"].(map[string]any)["details"]); details != "[map[field:public_key message:must be RSA of 2048 to 4096 bits "+
			"with exponent 65537, P-256 or Ed25519, as a PEM block PUBLIC KEY]]" {
			t.Errorf("details %s", details)
		}
	}
}

// At most 10 live keys an account, so that rotation needs no gap. Eleven at once: ten get in. A deleted key makes room, and another account,
// also the other customer's, has its own ten.
func TestAccountHasAtMostTenLiveKeysHoweverTheyAreAdded(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	made := h.post("/v1.0/service_accounts", h.acme.adminJWT, "").wants(http.StatusOK).json()
	keys := "/v1.0/service_accounts/" + made["id"].(string) + "/keys"
	servers := []*harness{h, h.instance()}
	var mu sync.Mutex
	var wg sync.WaitGroup
	codes := map[int]int{}
	for i := range 11 {
		wg.Go(func() {
			_, _, got, err := servers[i%2].do(request{method: http.MethodPost, path: keys, body: `{"algorithm":"EdDSA"}`, header: bearing(h.acme.adminJWT)})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			codes[got.code]++
		})
	}
	wg.Wait()
	if codes[http.StatusOK] != 10 || codes[http.StatusConflict] != 1 {
		t.Fatalf("eleven at once: %v", codes)
	}
	full := func() {
		t.Helper()
		_, public := h.newAccount(h.globex.adminJWT, auth.EdDSA).public()
		for _, body := range []any{nil, `{"algorithm":"ES256"}`, map[string]any{"public_key": public}} {
			got := h.post(keys, h.acme.adminJWT, body)
			got.refuses(http.StatusConflict, "TOO_MANY_KEYS")
			if got.json()["error"].(map[string]any)["status"] != "FAILED_PRECONDITION" {
				t.Errorf("body %s", got.raw)
			}
		}
	}
	full()
	listed := h.get(keys, h.acme.adminJWT).wants(http.StatusOK).json()["result"].([]any)
	if len(listed) != 10 {
		t.Fatalf("%d keys", len(listed))
	}
	h.delete(keys+"/"+listed[4].(map[string]any)["id"].(string), h.acme.adminJWT).wants(http.StatusOK)
	h.post(keys, h.acme.adminJWT, `{"algorithm":"EdDSA"}`).wants(http.StatusOK)
	full()
	h.newAccount(h.acme.adminJWT, auth.EdDSA)
	h.newAccount(h.globex.adminJWT, auth.EdDSA)
}

// "so that rotation needs no gap": while the new key comes and the old one goes, there is no moment without a token that
// works, on any instance.
func TestKeysRotateWithoutAGap(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	other := h.instance()
	current := h.newAccount(h.acme.adminJWT, auth.ES256)
	for range 3 {
		next := h.newAccountKey(h.acme.adminJWT, current.id, auth.EdDSA)
		for _, server := range []*harness{h, other} {
			current.accepted(t, server, current.token())
			next.accepted(t, server, next.token())
		}
		gone := h.delete("/v1.0/service_accounts/"+current.id+"/keys/"+current.kid, h.acme.adminJWT).wants(http.StatusOK).json()
		if gone["id"] != current.kid || gone["tm_delete"] == sentinel || gone["tm_delete"] != gone["tm_update"] {
			t.Errorf("the deleted key: %v", gone)
		}
		for _, server := range []*harness{h, other} {
			server.refused(t, "the old key", current.token())
			next.accepted(t, server, next.token())
		}
		current = next
	}
	path := "/v1.0/service_accounts/" + current.id + "/keys/"
	second := h.newAccountKey(h.acme.adminJWT, current.id, auth.EdDSA)
	h.delete(path+second.kid, h.acme.adminJWT).wants(http.StatusOK)
	h.delete(path+second.kid, h.acme.adminJWT).refuses(http.StatusNotFound, "SERVICE_ACCOUNT_KEY_NOT_FOUND")
	h.delete(path+nobody, h.acme.adminJWT).refuses(http.StatusNotFound, "SERVICE_ACCOUNT_KEY_NOT_FOUND")
	// A key belongs to its account: under another's path it is not there, for any caller.
	sibling, foreign := h.newAccount(h.acme.adminJWT, auth.EdDSA), h.newAccount(h.globex.adminJWT, auth.EdDSA)
	for _, by := range []*account{sibling, foreign} {
		h.delete(path+by.kid, h.acme.adminJWT).refuses(http.StatusNotFound, "SERVICE_ACCOUNT_KEY_NOT_FOUND")
		by.accepted(t, h, by.token())
	}
}

// A deleted key, account or customer ends its tokens on every instance from the very answer on; what was not deleted goes on.
func TestTokensEndWithTheirKeyAccountAndCustomerOnEveryInstance(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	other := h.instance()
	for _, alg := range auth.Algorithms() {
		first := h.newAccount(h.acme.adminJWT, alg)
		second, sibling := h.newAccountKey(h.acme.adminJWT, first.id, alg), h.newAccount(h.acme.adminJWT, alg)
		one, two, three := first.token(), second.token(), sibling.token()
		first.accepted(t, other, one)
		h.delete("/v1.0/service_accounts/"+first.id+"/keys/"+first.kid, h.acme.adminJWT).wants(http.StatusOK)
		other.refused(t, string(alg)+", its key deleted", one)
		second.accepted(t, other, two)
		other.delete("/v1.0/service_accounts/"+first.id, h.acme.adminJWT).wants(http.StatusOK)
		h.refused(t, string(alg)+", its account deleted", two)
		sibling.accepted(t, h, three)
		for _, req := range []request{
			{method: http.MethodGet, path: "/keys"}, {method: http.MethodPost, path: "/keys"}, {method: http.MethodDelete, path: "/keys/" + second.kid},
		} {
			req.path, req.header = "/v1.0/service_accounts/"+first.id+req.path, bearing(h.acme.adminJWT)
			h.send(req).refuses(http.StatusNotFound, "SERVICE_ACCOUNT_NOT_FOUND")
		}
	}
	// An account may end itself by the very token that it presents.
	own := h.newAccount(h.acme.adminJWT, auth.EdDSA, auth.RoleCustomerAdmin)
	token := own.token()
	h.delete("/v1.0/service_accounts/"+own.id, token).wants(http.StatusOK)
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
		sinks.ask(h, request{method: http.MethodGet, path: "/v1.0/service_accounts/" + a.id + "/keys", header: bearing(token)})
		sinks.ask(h, request{method: http.MethodGet, path: "/v1.0/service_accounts/" + a.id + "/keys", header: bearing(h.acme.adminJWT)}).wants(http.StatusOK)
		sinks.ask(h, request{method: http.MethodPost, path: "/v1.0/service_accounts/" + a.id + "/keys", body: a.file, header: bearing(h.acme.adminJWT)})
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
