package auth

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"accesskeys/internal/authcache"
	"accesskeys/internal/secret"
)

// Contract, section 3: the table of carriers, on the function that reads them; credentials_test.go of package api shows the same on the
// wire. In the cases <K> is an access key and <J> has the shape of a JWT.
func TestExtractFindsTheOneCredential(t *testing.T) {
	t.Parallel()
	const key, token = "vb_0123456789abcdefABCDEFghijKLMNO_", "eyJh.eyJz.c2ln"
	fill := strings.NewReplacer("<K>", key, "<J>", token)
	const none, invalid = "none", "invalid"
	for _, c := range []struct {
		query  string
		header []string
		want   string // J, K, none or invalid
	}{
		{"", nil, none},
		{"", []string{}, none},
		{"&&&=&", nil, none},
		{"x=<J>&y=<K>", nil, none},
		{"token=<J>", nil, "J"},
		{"accesskey=<K>", nil, "K"},
		{"token=<K>", nil, invalid},
		{"accesskey=<J>", nil, invalid},
		{"", []string{"Bearer <J>"}, "J"},
		{"", []string{"Bearer <K>"}, "K"},
		{"", []string{"bEARER   <K>  "}, "K"},
		{"", []string{"Bearer"}, none},
		{"", []string{"Bearer "}, none},
		{"", []string{"Bearer<K>"}, none},
		{"", []string{"<K>"}, none},
		{"", []string{""}, none},
		{"", []string{"Basic <K>"}, none},
		{"", []string{"Basic <K>, Bearer <K>"}, none},
		{"", []string{"Bearer <K>, Bearer <K>"}, invalid},
		{"", []string{"Bearer <K>,Basic x"}, invalid},
		{"", []string{"Bearer \t<K>"}, invalid},
		{"", []string{"Bearer <K>", "Bearer <K>"}, invalid},
		{"", []string{"Bearer <K>", "Basic x"}, invalid},
		{"", []string{"Basic x", "Bearer <K>"}, invalid},
		{"", []string{"Bearer", "Bearer <K>"}, invalid},
		{"", []string{"Bearer <K>", "Bearer "}, invalid},
		{"", []string{"Bearer <K>", ""}, invalid},
		{"", []string{"Bearer", "Bearer"}, none},
		{"", []string{"Basic x", "Basic y"}, none},
		{"accesskey=<K>", []string{"Basic x"}, "K"},
		{"accesskey=<K>", []string{"Bearer "}, "K"},
		{"accesskey=", []string{"Bearer <K>"}, "K"},
		{"accesskey=<K>", []string{"Bearer <K>"}, invalid},
		{"token=<J>", []string{"Bearer <J>"}, invalid},
		{"token=<J>&accesskey=<K>", nil, invalid},
		{"accesskey=<K>&token=<J>", nil, invalid},
		{"accesskey=<K>&accesskey=<K>", nil, invalid},
		{"token=<J>&token=<J>", nil, invalid},
		{"token=<J>&token=", nil, invalid},
		{"token=&token=<J>", nil, invalid},
		{"token&token=<J>", nil, invalid},
		{"token=&token=", nil, none},
		{"token=&accesskey=<K>", nil, "K"},
		{"token=<J>&accesskey", nil, "J"},
		{"%74oken=<J>", nil, "J"},
		{"%74%6F%6b%65n=<J>", nil, "J"},
		{"acces%73key=%76b%5F" + key[3:], nil, "K"},
		{"token=<J>&%74oken=<J>", nil, invalid},
		{"accesske%79=<K>&accesskey=<K>", nil, invalid},
		{"%2574oken=<J>", nil, none},
		{"Token=<J>&TOKEN=<J>&AccessKey=<K>&accessKey=<K>", nil, none},
		{"+token=<J>&token+=<J>&%20token=<J>&token%00=<J>", nil, none},
		{"token[]=<J>&token.0=<J>&tokens=<J>&access_key=<K>&access-key=<K>", nil, none},
		{"accesskey=<K>%00", nil, invalid},
		{"accesskey=<K>+", nil, invalid},
		{"token=%zz", nil, invalid},
		{"token=%", nil, invalid},
		{"token=%zz&accesskey=<K>", nil, invalid},
		{"accesskey=<K>&token=%zz", nil, invalid},
		{"x=%zz&accesskey=<K>", nil, "K"},
		{"%zz=1&accesskey=<K>", nil, "K"},
		{"%zztoken=<J>", nil, none},
		{"accesskey=a;accesskey=b", nil, invalid},
		{"accesskey=<K>;accesskey=<K>", nil, invalid},
		{"accesskey=<K>;", nil, invalid},
		{"accesskey=<K>;x=1", nil, invalid},
		{"x=1;token=<J>", nil, invalid},
		{"x=1;%74oken=<J>", nil, invalid},
		{"x;token", nil, invalid},
		{"x=1;token=<J>&accesskey=<K>", nil, invalid},
		{"accesskey=<K>&;token=<J>", nil, invalid},
		{"x=1;y=2&accesskey=<K>", nil, "K"},
		{"x=1;y=2", nil, none},
		{"accesskey=<K>%3Baccesskey=<K>", nil, invalid},
		{"x=%26token=<J>", nil, none},
		{"accesskey=<K>#", nil, invalid},
		{"accesskey==<K>", nil, invalid},
		{"accesskey=<K>=", nil, invalid},
		{"accesskey=<K>?token=<J>", nil, invalid},
	} {
		header := make([]string, 0, len(c.header))
		for _, line := range c.header {
			header = append(header, fill.Replace(line))
		}
		got, err := Extract(fill.Replace(c.query), header)
		name := "?" + c.query + " " + strings.Join(c.header, " | ")
		switch c.want {
		case "K":
			if err != nil || got.Kind != KindAccessKey || got.token.Reveal() != key || got.jwt != "" {
				t.Errorf("%s: %v %v, want the access key", name, got.Kind, err)
			}
		case "J":
			if err != nil || got.Kind != KindJWT || got.jwt != token || !got.token.Empty() {
				t.Errorf("%s: %v %v, want the JWT", name, got.Kind, err)
			}
		case none:
			if !errors.Is(err, ErrNoCredential) || errors.Is(err, ErrInvalidCredential) || got != (Credential{}) {
				t.Errorf("%s: %v %v, want no credential", name, got.Kind, err)
			}
		default:
			if !errors.Is(err, ErrInvalidCredential) || errors.Is(err, ErrNoCredential) || got != (Credential{}) {
				t.Errorf("%s: %v %v, want a refusal", name, got.Kind, err)
			}
		}
	}
}

// Bound the token's length before parsing.
func TestTooLongTokenIsRefusedUnparsed(t *testing.T) {
	t.Parallel()
	s := newSessions(t, testSecret, "")
	for length, ok := range map[int]bool{maxJWTLength: true, maxJWTLength + 1: false, 1 << 20: false} {
		token := strings.Repeat("a", length-4) + ".b.c"
		if _, err := Extract("token="+token, nil); (err == nil) != ok {
			t.Errorf("%d bytes in the query: %v, want taken %t", length, err, ok)
		}
		if _, err := Extract("", []string{"Bearer " + token}); (err == nil) != ok {
			t.Errorf("%d bytes in the header: %v, want taken %t", length, err, ok)
		}
		if _, err := s.parse(token); !errors.Is(err, ErrInvalidCredential) {
			t.Errorf("%d bytes parsed: %v", length, err)
		}
	}
}

// A Credential that nobody made must not be taken for anyone.
func TestNoCredentialIsNobody(t *testing.T) {
	t.Parallel()
	rows, err := authcache.New(authcache.Config{})
	if err != nil {
		t.Fatal(err)
	}
	v := NewVerifier(VerifierConfig{Rows: rows, Sessions: newSessions(t, testSecret, "")})
	for _, c := range []Credential{{}, {Kind: "other"}, {Kind: KindJWT}, {Kind: KindJWT, token: AccessToken{secret.New("x")}}} {
		if p, err := v.Verify(context.Background(), c, netip.Addr{}); !errors.Is(err, ErrInvalidCredential) || p.Type != "" {
			t.Errorf("%q: %v, %v", c.Kind, p, err)
		}
	}
}

// Contract, section 12: the original URL carries a credential under the rules of section 3, exactly one in all, and the very same query
// counts once. In the cases <K> is an access key and <J> has the shape of a JWT.
func TestExtractForwardedFindsTheOneCredentialInAllQueries(t *testing.T) {
	t.Parallel()
	const key, token = "vb_0123456789abcdefABCDEFghijKLMNO_", "eyJh.eyJz.c2ln"
	fill := strings.NewReplacer("<K>", key, "<J>", token)
	const none, invalid = "none", "invalid"
	for _, c := range []struct {
		queries []string
		header  string
		want    string // J, K, none or invalid
	}{
		{nil, "", none},
		{[]string{"", "", ""}, "", none},
		{[]string{"x=1", "", "y=2"}, "", none},
		{nil, "Bearer <K>", "K"},
		{[]string{"accesskey=<K>"}, "", "K"},
		{[]string{"", "accesskey=<K>"}, "", "K"},
		{[]string{"", "x=1", "token=<J>"}, "", "J"},
		{[]string{"x=1", "x=1"}, "Bearer <J>", "J"},
		{[]string{"accesskey=<K>", "accesskey=<K>"}, "", "K"},
		{[]string{"accesskey=<K>", "accesskey=<K>", "accesskey=<K>"}, "", "K"},
		{[]string{"accesskey=<K>&x", "x=1", "accesskey=<K>&x"}, "", "K"},
		{[]string{"accesskey=<K>&token=", "accesskey=<K>&token="}, "", "K"},
		{[]string{"accesskey=<K>", "accesskey=<K>&"}, "", invalid},
		{[]string{"accesskey=<K>", "accesskey=%76" + key[1:]}, "", invalid},
		{[]string{"accesskey=<K>", "x=1&accesskey=<K>"}, "", invalid},
		{[]string{"accesskey=<K>", "token=<J>"}, "", invalid},
		{[]string{"token=<J>", "accesskey=<K>"}, "", invalid},
		{[]string{"accesskey=<K>", "accesskey=<K>", "token=<J>"}, "", invalid},
		{[]string{"token=<J>", "accesskey=<K>", "token=<J>"}, "", invalid},
		{[]string{"accesskey=<K>", "accesskey=<K>"}, "Bearer <K>", invalid},
		{[]string{"", "accesskey=<K>"}, "Bearer <J>", invalid},
		{[]string{"accesskey=<K>&accesskey=<K>", "accesskey=<K>&accesskey=<K>"}, "", invalid},
		{[]string{"accesskey=<K>", "accesskey="}, "", invalid},
		{[]string{"accesskey=", "accesskey=<K>"}, "", invalid},
		{[]string{"token=", "accesskey=<K>"}, "", "K"},
		{[]string{"token=", "token="}, "", none},
		{[]string{"token=", "token"}, "", none},
		{[]string{"x=1", "token=<K>"}, "", invalid},
		{[]string{"x=1", "accesskey=<J>"}, "", invalid},
		{[]string{"accesskey=<K>", "x=1;token=<J>"}, "", invalid},
		{[]string{"x=1;token=<J>", "accesskey=<K>"}, "", invalid},
		{[]string{"accesskey=<K>", "token=%zz"}, "", invalid},
		{[]string{"token=%zz"}, "Bearer <K>", invalid},
		{[]string{"accesskey=", "<K>"}, "", none}, // two queries are not one text
		{[]string{"access", "key=<K>"}, "", none},
	} {
		var queries, header []string
		for _, query := range c.queries {
			queries = append(queries, fill.Replace(query))
		}
		if c.header != "" {
			header = []string{fill.Replace(c.header)}
		}
		got, err := ExtractForwarded(queries, header)
		var ok bool
		switch c.want {
		case "K":
			ok = err == nil && got.Kind == KindAccessKey && got.token.Reveal() == key && got.jwt == ""
		case "J":
			ok = err == nil && got.Kind == KindJWT && got.jwt == token && got.token.Empty()
		case none:
			ok = errors.Is(err, ErrNoCredential) && got == (Credential{})
		default:
			ok = errors.Is(err, ErrInvalidCredential) && got == (Credential{})
		}
		if !ok {
			t.Errorf("%q %s: %v %v, want %s", c.queries, c.header, got.Kind, err, c.want)
		}
	}
}

// A text that is asked about is an access key or has the form of a JWT, to the byte, or is refused.
func TestParsedCredentialIsWhatTheTextIsAndNothingNear(t *testing.T) {
	t.Parallel()
	const key, token = "vb_0123456789abcdefABCDEFghijKLMNO_", "eyJh.eyJz.c2ln"
	if c, err := ParseCredential(key); err != nil || c.Kind != KindAccessKey || c.token.Reveal() != key {
		t.Errorf("a key: %v %v", c.Kind, err)
	}
	for _, text := range []string{token, "..", "a.b.c", strings.Repeat("a", maxJWTLength-4) + ".b.c"} {
		if c, err := ParseCredential(text); err != nil || c.Kind != KindJWT || c.jwt != text {
			t.Errorf("%.20s: %v %v", text, c.Kind, err)
		}
	}
	for _, text := range []string{
		"", " ", "x", "vb_", key + " ", " " + key, key + "\n", key[:34], key + "a", "Bearer " + key, strings.ToUpper(key), "vb_a.b.c", key + ".b.c", "a.b", "a.b.c.d",
		strings.Repeat("a", maxJWTLength-3) + ".b.c", strings.Repeat(".", 1<<20),
	} {
		if c, err := ParseCredential(text); !errors.Is(err, ErrInvalidCredential) || errors.Is(err, ErrNoCredential) || c != (Credential{}) {
			t.Errorf("%.50q: %v %v, want a refusal", text, c.Kind, err)
		}
	}
}
