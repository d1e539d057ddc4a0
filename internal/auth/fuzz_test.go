package auth

import (
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// reading is one credential as some server would find it in a request.
type reading struct{ carrier, value string }

// naiveReadings are the credentials that are not empty, as found by those who know nothing of this package: Go's own
// parser of queries, and one that splits at semicolons too, as some do. Bearer values belong to both.
func naiveReadings(query string, authorization []string) (byGo, bySemicolons []reading) {
	values, _ := url.ParseQuery(query) // what it can't decode it leaves out
	for _, name := range []string{"token", "accesskey"} {
		for _, value := range values[name] {
			if value != "" {
				byGo = append(byGo, reading{name, value})
			}
		}
	}
	for _, pair := range strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }) {
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, nameErr := url.QueryUnescape(rawName)
		value, valueErr := url.QueryUnescape(rawValue)
		if nameErr == nil && valueErr == nil && value != "" && (name == "token" || name == "accesskey") {
			bySemicolons = append(bySemicolons, reading{name, value})
		}
	}
	for _, header := range authorization {
		if words := strings.Split(header, " "); strings.EqualFold(words[0], "bearer") {
			if value := strings.Trim(strings.Join(words[1:], " "), " "); value != "" {
				byGo = append(byGo, reading{"bearer", value})
				bySemicolons = append(bySemicolons, reading{"bearer", value})
			}
		}
	}
	return byGo, bySemicolons
}

// Contract, section 3: More than one, or one repeated: 401; the pitfall is "?accesskey=a;accesskey=b vanishes from URL.Query()". What
// Extract accepts is what every naive reader would find, and the only thing it would. Section 12: exactly one in all. Several queries are
// read as one that has all of their pairs, but for copies; so nothing hides in the seam between two, and the order makes no difference.
func FuzzExtract(f *testing.F) {
	const key, token = aKey, aJWT
	queries := []string{
		"", "token=" + token, "accesskey=" + key, "accesskey=" + token, "token=" + key, "token=" + token + "&accesskey=" + key,
		"%74oken=" + token, "accesskey=" + key + ";accesskey=" + key, "x=1;token=" + token, "token=%zz&accesskey=" + key,
		"accesskey=" + key + "%3B", "token&token=" + token, "token=+" + token, "a=b&&=&accesskey=" + key, "Token=" + token,
		"x=%zz;accesskey=" + key, "accesskey=%00", "token=" + token + "&token=" + token + "&token=",
		"accesskey=", "token", "x=1", "token=%zz", "accesskey=" + key + "&", "%61ccesskey=" + key, "token=" + token + "&token=", "&", "access",
		"key=" + key, "accesskey=" + key + ";",
	}
	for i, first := range queries {
		f.Add(first, "", "", "", "", uint8(1))
		f.Add(first, "", "", "Bearer "+key, "", uint8(1+4))
		f.Add(first, first, first, "Basic x", "bearer "+token, uint8(i%4+8))
		for j, second := range queries {
			f.Add(first, second, queries[(i+j)%len(queries)], "bearer "+token, "", uint8(i+j))
		}
	}
	f.Add("", "", "", "BEARER  "+token+" ", "", uint8(4))
	f.Add("", "", "", "Bearer "+key, "Bearer "+key, uint8(8))
	shape := regexp.MustCompile(`\Avb_[0-9A-Za-z_-]{32}\z`)
	f.Fuzz(func(t *testing.T, first, second, third, header, another string, numbers uint8) {
		all, authorization := []string{first, second, third}[:numbers%4], []string{header, another}[:numbers/4%3]
		var distinct []string
		for _, query := range all {
			if !slices.Contains(distinct, query) {
				distinct = append(distinct, query)
			}
		}
		joined := strings.Join(distinct, "&")
		c, err := Extract(joined, authorization)
		byGo, bySemicolons := naiveReadings(joined, authorization)
		none, invalid := errors.Is(err, ErrNoCredential), errors.Is(err, ErrInvalidCredential)
		switch {
		case none:
			if len(byGo)+len(bySemicolons) != 0 {
				t.Fatalf("nothing found, where others find %q and %q", byGo, bySemicolons)
			}
		case invalid:
		case err != nil:
			t.Fatalf("an error that is neither: %v", err)
		default:
			if len(byGo) != 1 || !slices.Equal(byGo, bySemicolons) {
				t.Fatalf("accepted, where others find %q and %q", byGo, bySemicolons)
			}
			accepted, wrongCarrier := c.jwt, "accesskey"
			if c.Kind == KindAccessKey {
				accepted, wrongCarrier = c.token.Reveal(), "token"
				if !shape.MatchString(accepted) {
					t.Fatalf("accepted %q as an access key", accepted)
				}
			}
			if c.Kind == "" || accepted != byGo[0].value || byGo[0].carrier == wrongCarrier || c.jwt != "" && !c.token.Empty() {
				t.Fatalf("accepted %q as %s, where others find %q", accepted, c.Kind, byGo)
			}
		}
		if err != nil && c != (Credential{}) {
			t.Fatalf("a refusal that gives %v", c.Kind)
		}
		backwards := slices.Clone(all)
		slices.Reverse(backwards)
		for _, queries := range [][]string{all, backwards} {
			got, err := ExtractForwarded(queries, authorization)
			if got != c || errors.Is(err, ErrNoCredential) != none || errors.Is(err, ErrInvalidCredential) != invalid {
				t.Fatalf("%q and %q: %v %v, as one query %v", queries, authorization, got.Kind, err, c.Kind)
			}
		}
	})
}

// fixedToken is a good token that is the same in every run, so that inputs which a run has found mean something to the
// next one.
func fixedToken(tb testing.TB, s *Sessions) string {
	tb.Helper()
	agent, customer := uuid.UUID{15: 1}, uuid.UUID{15: 2}
	return must(jwt.NewWithClaims(jwt.SigningMethodHS256, &strict[sessionClaims]{claims: sessionClaims{
		Issuer: sessionIssuer, Subject: agent, ID: uuid.UUID{15: 3}, IssuedAt: 1_800_000_000, ExpiresAt: 1_800_604_800,
		Type: "agent", CustomerID: customer, PasswordTime: 1_700_000_000_000_000,
		Agent: sessionAgent{ID: agent, CustomerID: customer, Username: "user@example.org", Name: "n", Permission: 32},
	}}).SignedString([]byte(s.current.Reveal())))(tb)
}

// Contract, section 3: Expired, deleted, malformed, tampered: 401. A client without the secret can present nothing but the bytes of a
// token that was issued: there is no second spelling of one.
func FuzzParseSession(f *testing.F) {
	s := newSessions(f, testSecret, testOtherSecret)
	good := fixedToken(f, s)
	parts := strings.Split(good, ".")
	must(s.parse(good))(f) // the control of every refusal below
	for _, text := range append(hostile(good), good) {
		f.Add(text)
	}
	other := newSessions(f, strings.Repeat("another secret", 3), "")
	f.Add(issue(f, other, anAgent(time.Unix(1_800_000_000, 0)), time.Unix(1_800_000_000, 0)))
	f.Fuzz(func(t *testing.T, input string) {
		try := func(token string) {
			claims, err := s.parse(token)
			switch {
			case err == nil && token != good:
				t.Fatalf("accepted %q", token)
			case err != nil && (claims != nil || !errors.Is(err, ErrInvalidCredential) || Cause(err) == ""):
				t.Fatalf("refused %q with %v and %v", token, claims, err)
			}
		}
		try(input)
		for i := range parts { // and as a part of a token that is good otherwise
			spliced := append([]string{}, parts...)
			spliced[i] = input
			try(strings.Join(spliced, "."))
		}
	})
}
