package api_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash"
	"maps"
	"strconv"
	"strings"
	"testing"
)

// goodHeader is the one header of our tokens (contract, section 2).
const goodHeader = `{"alg":"HS256","typ":"JWT"}`

// hostile is a token that must be refused, and why: the cause shows that it failed at what makes it hostile, and not at
// a slip of this test's.
type hostile struct{ class, name, token, cause string }

// forger makes tokens out of the parts of a good one. It signs with its own few lines, because no library signs what
// these tests need signed.
type forger struct {
	t                          *testing.T
	header, payload, signature string // of the good token, as they stand in it
	claims                     map[string]any
	now                        int64 // its iat
}

func newForger(t *testing.T, good string) *forger {
	t.Helper()
	parts := strings.Split(good, ".")
	f := &forger{t: t, header: parts[0], payload: parts[1], signature: parts[2]}
	decoder := json.NewDecoder(strings.NewReader(f.text()))
	decoder.UseNumber() // password_time has more digits than a float64
	if err := decoder.Decode(&f.claims); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.now, err = f.claims["iat"].(json.Number).Int64(); err != nil {
		t.Fatal(err)
	}
	return f
}

// text is the good token's claims as JSON.
func (f *forger) text() string {
	plain, err := base64.RawURLEncoding.DecodeString(f.payload)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(plain)
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// mac is an HMAC, as a JWT's third part.
func mac(digest func() hash.Hash, key, input string) string {
	m := hmac.New(digest, []byte(key))
	m.Write([]byte(input))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// signed adds HS256 of the right secret to two parts that stand as they are.
func signed(header, payload string) string {
	return header + "." + payload + "." + mac(sha256.New, jwtSecret, header+"."+payload)
}

// withHeader is the good claims under another header, signed with the right secret.
func (f *forger) withHeader(header string) string { return signed(b64(header), f.payload) }

// withText is other claims, as text, under the good header, signed with the right secret.
func (f *forger) withText(claims string) string { return signed(b64(goodHeader), b64(claims)) }

// with is the good claims with a change, signed with the right secret.
func (f *forger) with(change func(claims map[string]any)) string {
	f.t.Helper()
	claims := maps.Clone(f.claims)
	claims["agent"] = maps.Clone(f.claims["agent"].(map[string]any))
	change(claims)
	text, err := json.Marshal(claims)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.withText(string(text))
}

// set and without are the usual changes.
func (f *forger) set(name string, value any) string {
	f.t.Helper()
	return f.with(func(claims map[string]any) { claims[name] = value })
}

func (f *forger) without(name string) string {
	f.t.Helper()
	return f.with(func(claims map[string]any) { delete(claims, name) })
}

// times sets iat and exp.
func (f *forger) times(iat, exp any) string {
	f.t.Helper()
	return f.with(func(claims map[string]any) { claims["iat"], claims["exp"] = iat, exp })
}

// replace changes the text of the claims, which must hold what is replaced.
func (f *forger) replace(old, replacement string) string {
	f.t.Helper()
	if !strings.Contains(f.text(), old) {
		f.t.Fatalf("%s is not in %s", old, f.text())
	}
	return f.withText(strings.Replace(f.text(), old, replacement, 1))
}

// flip changes one bit of the text at a place counted from the end.
func flip(s string, fromEnd int) string {
	at := len(s) - fromEnd
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return s[:at] + string(alphabet[strings.IndexByte(alphabet, s[at])^32]) + s[at+1:]
}

// spareBits changes the last character of base64 text so that it still decodes to the same bytes.
func spareBits(s string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return s[:len(s)-1] + string(alphabet[strings.IndexByte(alphabet, s[len(s)-1])^1])
}

// algorithms: the header names another algorithm than the key's (RFC 8725, section 2.1).
func (f *forger) algorithms() map[string]string {
	made := map[string]string{}
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "", "HS256 ", "hs256", "HS1", "dir", "RS256", "PS256", "ES256", "EdDSA"} {
		header := b64(`{"alg":` + strconv.Quote(alg) + `,"typ":"JWT"}`)
		made["alg "+strconv.Quote(alg)+" without a signature"] = header + "." + f.payload + "."
		made["alg "+strconv.Quote(alg)+" with the good signature"] = header + "." + f.payload + "." + f.signature
		made["alg "+strconv.Quote(alg)+" signed with the right secret"] = signed(header, f.payload)
	}
	for name, digest := range map[string]func() hash.Hash{"HS384": sha512.New384, "HS512": sha512.New, "HS224": sha256.New224} {
		input := b64(`{"alg":"`+name+`","typ":"JWT"}`) + "." + f.payload
		made[name+" with the right secret"] = input + "." + mac(digest, jwtSecret, input)
		input = b64(goodHeader) + "." + f.payload
		made[name+" under the good header"] = input + "." + mac(digest, jwtSecret, input)
	}
	made["no alg"] = f.withHeader(`{"typ":"JWT"}`)
	made["alg null"] = f.withHeader(`{"alg":null,"typ":"JWT"}`)
	made["alg a number"] = f.withHeader(`{"alg":256,"typ":"JWT"}`)
	made["alg an array"] = f.withHeader(`{"alg":["HS256"],"typ":"JWT"}`)
	made["alg twice, good last"] = f.withHeader(`{"alg":"none","alg":"HS256","typ":"JWT"}`)
	made["alg twice, good first"] = f.withHeader(`{"alg":"HS256","alg":"none","typ":"JWT"}`)
	made["alg twice, the same"] = f.withHeader(`{"alg":"HS256","alg":"HS256","typ":"JWT"}`)
	made["ALG beside alg"] = f.withHeader(`{"alg":"HS256","typ":"JWT","ALG":"none"}`)
	maps.Copy(made, f.publicKeys())
	return made
}

// publicKeys: tokens whose signature a key of the sender's own would verify, named in every way that a header can.
func (f *forger) publicKeys() map[string]string {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		f.t.Fatal(err)
	}
	asPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	made := map[string]string{}
	for name, extra := range map[string]string{
		"": "", " with its jwk": `,"jwk":{"kty":"OKP","crv":"Ed25519","x":"` + base64.RawURLEncoding.EncodeToString(public) + `"}`,
		" with its x5c": `,"x5c":["` + base64.StdEncoding.EncodeToString(der) + `"]`,
		" with its jku": `,"jku":"https://attacker.example/keys","kid":"1"`, " with its x5u": `,"x5u":"https://attacker.example/cert"`,
	} {
		input := b64(`{"alg":"EdDSA","typ":"JWT"`+extra+`}`) + "." + f.payload
		made["EdDSA"+name] = input + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(input)))
	}
	input := b64(`{"alg":"ES256","typ":"JWT"}`) + "." + f.payload
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, curve, digest[:])
	if err != nil {
		f.t.Fatal(err)
	}
	made["ES256 of a key of its own"] = input + "." + b64(string(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)))
	made["ES256, all zeroes"] = input + "." + b64(strings.Repeat("\x00", 64)) // psychic signatures
	good := b64(goodHeader) + "." + f.payload
	made["HMAC with a public key"] = good + "." + mac(sha256.New, asPEM, good)
	made["HMAC with a public key's bytes"] = good + "." + mac(sha256.New, string(public), good)
	return made
}

// headers: correctly signed, but the header is not, byte for byte, ours.
func (f *forger) headers() map[string]string {
	made := map[string]string{
		"reordered": `{"typ":"JWT","alg":"HS256"}`, "a space": `{"alg": "HS256","typ":"JWT"}`,
		"a line break after": goodHeader + "\n", "a space before": " " + goodHeader, "escapes": `{"\u0061lg":"HS256","typ":"JWT"}`,
		"no typ": `{"alg":"HS256"}`, "typ null": `{"alg":"HS256","typ":null}`, "a byte order mark": "\ufeff" + goodHeader,
		"an empty object": `{}`, "an array": `["HS256"]`, "null": `null`, "a string": `"HS256"`, "no JSON": `alg=HS256`,
		"two objects": goodHeader + goodHeader, "a trailing comma": `{"alg":"HS256","typ":"JWT",}`,
	}
	for _, typ := range []string{"jwt", "at+jwt", "JWS", "JWE", "secevent+jwt", "dpop+jwt", ""} {
		made["typ "+strconv.Quote(typ)] = `{"alg":"HS256","typ":"` + typ + `"}`
	}
	for name, extra := range map[string]string{
		"kid": `"kid":"1"`, "kid to a file": `"kid":"../../../../dev/null"`, "kid of SQL": `"kid":"' UNION SELECT 'key' -- "`,
		"kid to a URL": `"kid":"https://attacker.example/key"`, "kid to a command": `"kid":"|/bin/true"`, "kid with NUL": `"kid":"\u0000"`,
		"kid empty": `"kid":""`, "jku": `"jku":"https://attacker.example/keys"`, "x5u": `"x5u":"https://attacker.example/cert"`,
		"jwk":  `"jwk":{"kty":"oct","k":"` + b64(jwtSecret) + `"}`,
		"x5c":  `"x5c":["AAAA"]`,
		"x5t":  `"x5t":"AAAA"`,
		"crit": `"crit":["exp"]`, "crit unknown": `"crit":["https://example.org/must"],"https://example.org/must":true`, "crit empty": `"crit":[]`,
		"b64 false": `"b64":false`, "b64 false, critical": `"b64":false,"crit":["b64"]`, "zip": `"zip":"DEF"`, "cty": `"cty":"JWT"`,
		"enc": `"enc":"A256GCM"`, "claims in it": `"iss":"accesskeys","exp":9999999999`, "nonce": `"nonce":"1"`,
	} {
		made[name] = `{"alg":"HS256","typ":"JWT",` + extra + `}`
	}
	for name, header := range made {
		made[name] = f.withHeader(header)
	}
	made["another spelling of its base64"] = signed(spareBits(b64(goodHeader) + "A")[:len(f.header)]+"=", f.payload)
	return made
}

// spellings: other bytes for the same token, and things that are no compact serialisation at all.
func (f *forger) spellings() map[string]string {
	good := f.header + "." + f.payload + "." + f.signature
	odd := f.payload // whose length leaves spare bits in its last character
	for pad := " "; len(odd)%4 == 0; pad += " " {
		odd = b64(f.text() + pad)
	}
	standard := f.with(func(c map[string]any) { c["agent"].(map[string]any)["name"] = "???>>>~~~" })
	for n := 0; !strings.ContainsAny(standard[strings.LastIndexByte(standard, '.'):], "-_"); n++ {
		standard = f.with(func(c map[string]any) { c["agent"].(map[string]any)["name"] = fmt.Sprint("???>>>~~~", n) })
	}
	made := map[string]string{
		"padding after the header":            f.header + "=." + f.payload + "." + f.signature,
		"padding after the claims":            f.header + "." + f.payload + "=." + f.signature,
		"padding after the claims, signed":    signed(f.header, base64.URLEncoding.EncodeToString([]byte(f.text()+strings.Repeat(" ", 1+len(f.text())%3)))+"="),
		"padding after the signature":         good + "=",
		"much padding":                        good + "====",
		"spare bits of the signature":         f.header + "." + f.payload + "." + spareBits(f.signature),
		"spare bits of the claims, signed":    signed(f.header, spareBits(odd)),
		"the other alphabet":                  strings.NewReplacer("-", "+", "_", "/").Replace(standard),
		"a line break in the signature":       good[:len(good)-5] + "\n" + good[len(good)-5:],
		"a CRLF after":                        good + "\r\n",
		"a line break before":                 "\n" + good,
		"a line break in the claims, signed":  signed(f.header, f.payload[:8]+"\n"+f.payload[8:]),
		"a dot after":                         good + ".",
		"a dot before":                        "." + good,
		"a part more":                         good + "." + f.signature,
		"the token twice":                     good + "." + good,
		"two dots together":                   f.header + ".." + f.payload + "." + f.signature,
		"only dots":                           "..",
		"no header":                           "." + f.payload + "." + f.signature,
		"no claims":                           f.header + ".." + f.signature,
		"no claims, signed":                   signed(f.header, ""),
		"no signature":                        f.header + "." + f.payload + ".",
		"no third part":                       f.header + "." + f.payload,
		"one part":                            f.header,
		"unicode dots":                        strings.ReplaceAll(good, ".", "\uff0e"),
		"one unicode dot":                     f.header + "\u3002" + f.payload + "." + f.signature,
		"escaped dots":                        strings.ReplaceAll(good, ".", "%2E"),
		"NUL after":                           good + "\x00",
		"NUL after the header":                f.header + "\x00." + f.payload + "." + f.signature,
		"a space before":                      " " + good,
		"a space after":                       good + " ",
		"a tab after":                         good + "\t",
		"a space in the signature":            good[:len(good)-5] + " " + good[len(good)-5:],
		"quoted":                              `"` + good + `"`,
		"the scheme twice":                    "Bearer " + good,
		"a zero-width space":                  good + "\u200b",
		"a fullwidth letter":                  "\uff45" + good[1:],
		"header in other case":                strings.ToLower(f.header) + "." + f.payload + "." + f.signature,
		"JWE, five parts":                     b64(`{"alg":"dir","enc":"A256GCM"}`) + ".." + b64("initvector12") + "." + f.payload + "." + b64("tag"),
		"JWE with our parts":                  good + "." + f.payload + "." + f.signature,
		"flattened JSON":                      `{"payload":"` + f.payload + `","protected":"` + f.header + `","signature":"` + f.signature + `"}`,
		"general JSON":                        `{"payload":"` + f.payload + `","signatures":[{"protected":"` + f.header + `","signature":"` + f.signature + `"}]}`,
		"a token in a token":                  signed(b64(goodHeader), b64(good)),
		"a token in a token, cty":             signed(b64(`{"alg":"HS256","typ":"JWT","cty":"JWT"}`), b64(good)),
		"a token of 9 KiB":                    f.set("x", strings.Repeat("x", 9<<10)),
		"9 KiB of header":                     f.withHeader(`{"alg":"HS256","typ":"JWT","x":"` + strings.Repeat("x", 9<<10) + `"}`),
		"9 KiB of dots":                       strings.Repeat(".", 9<<10),
		"9 KiB of signature":                  good + strings.Repeat("A", 9<<10),
		"an access key in its place":          "vb_" + good,
		"plain JSON parts":                    goodHeader + "." + f.text() + "." + f.signature,
		"a detached payload (RFC 7515, F)":    f.header + ".." + mac(sha256.New, jwtSecret, f.header+"."+f.payload),
		"an unencoded payload, signed (7797)": signed(f.header, f.text()),
	}
	return made
}
