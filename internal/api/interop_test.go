//go:build e2e

package api_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"accesskeys/internal/auth"
)

// signer is a tool that is not ours: it signs these claims under this header with the private key of a credentials file.
type signer func(t *testing.T, file, header, claims string) string

// signNode is Node's own crypto.
const signNode = `
const { createPrivateKey, sign } = require('node:crypto');
const { file, header, claims } = JSON.parse(require('node:fs').readFileSync(0, 'utf8'));
const key = createPrivateKey(JSON.parse(file).private_key);
const input = [header, claims].map((text) => Buffer.from(text).toString('base64url')).join('.');
const digest = key.asymmetricKeyType === 'ed25519' ? null : 'sha256';
const signature = sign(digest, Buffer.from(input), { key, dsaEncoding: 'ieee-p1363' });
process.stdout.write(input + '.' + signature.toString('base64url'));
`

const missing = "%s is missing on this machine (make e2e installs it on Debian): %v"

// runTool runs a program of this machine's. A missing one is a failure: the promise would be shown by nothing.
func runTool(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Fatalf(missing, args[0], err)
	}
	var out, failed bytes.Buffer
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &failed
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", args[0], err, failed.String())
	}
	return out.String(), nil
}

func byNode(t *testing.T, file, header, claims string) string {
	t.Helper()
	input, err := json.Marshal(map[string]string{"file": file, "header": header, "claims": claims})
	if err != nil {
		t.Fatal(err)
	}
	token, err := runTool(t, string(input), "node", "-e", signNode)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// byGolangJWT is the library itself, with keys that it has read itself.
func byGolangJWT(t *testing.T, file, header, claims string) string {
	t.Helper()
	var c struct {
		PrivateKey string `json:"private_key"`
	}
	token := jwt.Token{Header: map[string]any{}}
	body := jwt.MapClaims{}
	for text, into := range map[string]any{file: &c, header: &token.Header, claims: &body} {
		decoder := json.NewDecoder(strings.NewReader(text))
		decoder.UseNumber()
		if err := decoder.Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	token.Claims = body
	pem := []byte(c.PrivateKey)
	if key, err := jwt.ParseRSAPrivateKeyFromPEM(pem); err == nil {
		return signedBy(t, token, jwt.SigningMethodRS256, key)
	}
	if key, err := jwt.ParseECPrivateKeyFromPEM(pem); err == nil {
		return signedBy(t, token, jwt.SigningMethodES256, key)
	}
	key, err := jwt.ParseEdPrivateKeyFromPEM(pem)
	if err != nil {
		t.Fatal(err)
	}
	return signedBy(t, token, jwt.SigningMethodEdDSA, key.(ed25519.PrivateKey))
}

func signedBy(t *testing.T, token jwt.Token, method jwt.SigningMethod, key any) string {
	t.Helper()
	token.Method = method
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// byOpenSSL is openssl in bash, by the part of the documented script that signs: the header and the claims are given.
func byOpenSSL(t *testing.T, file, header, claims string) string {
	t.Helper()
	script := documentedScript(t)
	for name, text := range map[string]string{"header": header, "claims": claims} {
		assignment := regexp.MustCompile(`(?ms)^` + name + `=\$\(.*?base64url\)$`)
		if len(assignment.FindAllString(script, -1)) != 1 {
			t.Fatalf("the script does not set %s in one place", name)
		}
		script = assignment.ReplaceAllLiteralString(script, name+"=$(printf %s '"+strings.ReplaceAll(text, "'", `'\''`)+"' | base64url)")
	}
	return openSSL(t, script, file, "3600")
}

// openSSL runs the script with a credentials file and returns the token.
func openSSL(t *testing.T, script, file, seconds string) string {
	t.Helper()
	for _, needed := range []string{"openssl", "jq"} {
		if _, err := exec.LookPath(needed); err != nil {
			t.Fatalf(missing, needed, err)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "credentials.json")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := runTool(t, "", "bash", "-c", script, "sign.sh", path, seconds)
	if err != nil {
		t.Fatal(err)
	}
	token, isHeader := strings.CutPrefix(out, "Authorization: Bearer ")
	if !isHeader {
		t.Fatal("the script prints no Authorization header")
	}
	return strings.TrimSuffix(token, "\n")
}

// documentedScript is the one in the documentation.
func documentedScript(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/service-accounts.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n```bash sign.sh\n")
	script, _, closed := strings.Cut(rest, "\n```\n")
	if !found || !closed {
		t.Fatal("the documentation has no block sign.sh")
	}
	return script + "\n"
}

// Done when: "Tokens signed by three independent tools pass and their mutants fail". Each tool signs for each algorithm;
// the mutants are signed by the same tool, with the right key, and differ in one thing.
func TestTokensOfThreeIndependentToolsPassAndTheirMutantsFail(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	foreign := h.newAccount(h.globex.adminJWT, auth.EdDSA, auth.RoleCustomerAdmin)
	for _, alg := range auth.Algorithms() {
		a := h.newAccount(h.acme.adminJWT, alg)
		stranger := h.newAccountKey(h.acme.adminJWT, a.id, alg) // right but for its kid
		for tool, sign := range map[string]signer{"openssl": byOpenSSL, "golang-jwt": byGolangJWT, "Node": byNode} {
			good := sign(t, a.file, a.header(), a.claims(nil))
			a.accepted(t, h, good)
			a.accepted(t, h, sign(t, a.file, a.header(), a.claims(map[string]any{"nbf": h.now(), "scope": "it's"})))
			head := func(alg, kid string) string { return fmt.Sprintf(`{"alg":%q,"typ":"JWT","kid":%q}`, alg, kid) }
			now := h.now()
			header, claims, signature := split(good)
			mutants := map[string]string{
				"another key":           sign(t, stranger.file, a.header(), a.claims(nil)),
				"another kid":           sign(t, a.file, stranger.header(), a.claims(nil)),
				"another customer's":    sign(t, a.file, head(string(alg), foreign.kid), a.claims(map[string]any{"iss": foreign.id})),
				"another's iss":         sign(t, a.file, a.header(), a.claims(map[string]any{"iss": foreign.id})),
				"no kid":                sign(t, a.file, fmt.Sprintf(`{"alg":%q}`, alg), a.claims(nil)),
				"another alg":           sign(t, a.file, head(map[auth.Algorithm]string{auth.RS256: "PS256", auth.ES256: "RS256", auth.EdDSA: "ES256"}[alg], a.kid), a.claims(nil)),
				"alg none":              sign(t, a.file, head("none", a.kid), a.claims(nil)),
				"too long":              sign(t, a.file, a.header(), a.claims(map[string]any{"iat": now, "exp": now + 3601})),
				"expired":               sign(t, a.file, a.header(), a.claims(map[string]any{"iat": now - 4000, "exp": now - 400})),
				"from the future":       sign(t, a.file, a.header(), a.claims(map[string]any{"iat": now + 400, "exp": now + 800})),
				"no exp":                sign(t, a.file, a.header(), a.claims(map[string]any{"exp": nil})),
				"no iat":                sign(t, a.file, a.header(), a.claims(map[string]any{"iat": nil})),
				"for somebody else":     sign(t, a.file, a.header(), a.claims(map[string]any{"aud": "https://other.example"})),
				"no signature":          header + "." + claims + ".",
				"a signature cut":       header + "." + claims + "." + signature[:len(signature)-4],
				"a bit of it altered":   header + "." + claims + "." + flip(signature, len(signature)/2),
				"claims altered":        header + "." + b64(a.claims(map[string]any{"exp": now + 3599})) + "." + signature,
				"another header":        b64(head(string(alg), a.kid)+" ") + "." + claims + "." + signature,
				"the stranger's, moved": transplant(good, sign(t, stranger.file, a.header(), a.claims(nil))),
			}
			for name, token := range mutants {
				if token == good {
					t.Errorf("%s: it is no mutant", name)
				}
				h.refused(t, fmt.Sprintf("%s, %s: %s", tool, alg, name), token)
			}
			a.accepted(t, h, good)
		}
	}
}

// The documented script as it stands, whatever the kind of key; and what it is asked for beyond an hour is refused.
func TestDocumentedScriptSignsForEachKindOfKey(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, alg := range auth.Algorithms() {
		a := h.newAccount(h.acme.adminJWT, alg)
		a.accepted(t, h, openSSL(t, documentedScript(t), a.file, "3600"))
		a.accepted(t, h, openSSL(t, documentedScript(t), a.file, "1"))
		h.refused(t, "an hour and a second", openSSL(t, documentedScript(t), a.file, "3601"))
		other := h.newAccount(h.globex.adminJWT, alg)
		h.refused(t, "another's key", openSSL(t, documentedScript(t), strings.Replace(other.file, other.kid, a.kid, 1), "60"))
	}
}

// The numbers of an ECDSA signature may begin with zeroes, which openssl leaves out: one token in 128 has such a one. So
// that no chance is needed, openssl's place is taken by a function that gives a signature of our choice.
func TestDocumentedScriptPadsTheNumbersOfASignature(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	es := h.newAccount(h.acme.adminJWT, auth.ES256)
	for _, numbers := range [][2]string{
		{"1", "2"}, {"00" + strings.Repeat("7f", 31), strings.Repeat("ff", 32)}, {"0" + strings.Repeat("a", 63), "000000" + strings.Repeat("0b", 29)},
		{strings.Repeat("80", 32), "100"}, {strings.Repeat("0c", 32), strings.Repeat("c0", 32)},
	} {
		var pair [2]*big.Int
		for i, text := range numbers {
			pair[i], _ = new(big.Int).SetString(text, 16)
		}
		der, err := asn1.Marshal(struct{ R, S *big.Int }{pair[0], pair[1]})
		if err != nil {
			t.Fatal(err)
		}
		instead := `openssl() { if [ "$1" = dgst ]; then echo ` + base64.StdEncoding.EncodeToString(der) +
			` | command openssl base64 -d -A; else command openssl "$@"; fi; }` + "\n"
		_, _, got := split(openSSL(t, instead+documentedScript(t), es.file, "60"))
		if want := raw64(append(pair[0].FillBytes(make([]byte, 32)), pair[1].FillBytes(make([]byte, 32))...)); got != want {
			t.Errorf("%s: %s, want %s", numbers, got, want)
		}
	}
}
