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

// carried is what a request carries, by a line of the tables below: what begins with ? is a query, the rest are Authorization headers, <K>
// is an access key, and <J> has the form of a JWT.
func carried(line string) (queries, headers []string) {
	line = strings.NewReplacer("<K>", aKey, "<J>", aJWT).Replace(line)
	for part := range strings.SplitSeq(line, " | ") {
		if query, is := strings.CutPrefix(part, "?"); is {
			queries = append(queries, query)
		} else {
			headers = append(headers, part)
		}
	}
	return queries, headers
}

// isCredential fails the test unless what was found is what is wanted: "key", "JWT", "none" or "invalid".
func isCredential(t *testing.T, line, want string, got Credential, err error) {
	t.Helper()
	none, invalid, nothing := errors.Is(err, ErrNoCredential), errors.Is(err, ErrInvalidCredential), got == Credential{}
	if ok := map[string]bool{
		"key":     err == nil && got.Kind == KindAccessKey && got.token.Reveal() == aKey && got.jwt == "",
		"JWT":     err == nil && got.Kind == KindJWT && got.jwt == aJWT && got.token.Empty(),
		"none":    none && !invalid && nothing,
		"invalid": invalid && !none && nothing,
	}; !ok[want] {
		t.Errorf("%.100q: %v %v, want %s", line, got.Kind, err, want)
	}
}

// Contract, section 3: the table of carriers, on the function that reads them; credentials_test.go of package api shows the same on the
// wire.
func TestExtractFindsTheOneCredential(t *testing.T) {
	t.Parallel()
	for want, lines := range map[string][]string{
		"none": {
			"?", "?&&&=&", "?x=<J>&y=<K>", "?token=&token=", "?%2574oken=<J>", "?Token=<J>&TOKEN=<J>&AccessKey=<K>&accessKey=<K>",
			"?+token=<J>&token+=<J>&%20token=<J>&token%00=<J>", "?token[]=<J>&token.0=<J>&tokens=<J>&access_key=<K>&access-key=<K>",
			"?%zztoken=<J>", "?x=1;y=2", "?x=%26token=<J>",
			"", "Bearer", "Bearer ", "Bearer<K>", "<K>", "Basic <K>", "Basic <K>, Bearer <K>", "Bearer | Bearer", "Basic x | Basic y",
		},
		"JWT": {
			"?token=<J>", "?token=<J>&accesskey", "?%74oken=<J>", "?%74%6F%6b%65n=<J>", "Bearer <J>",
		},
		"key": {
			"?accesskey=<K>", "?token=&accesskey=<K>", "?acces%73key=%76b%5F" + aKey[3:], "?x=%zz&accesskey=<K>", "?%zz=1&accesskey=<K>",
			"?x=1;y=2&accesskey=<K>", "Bearer <K>", "bEARER   <K>  ",
			"?accesskey=<K> | Basic x", "?accesskey=<K> | Bearer ", "?accesskey= | Bearer <K>",
		},
		"invalid": {
			"?token=<K>", "?accesskey=<J>", "?token=<J>&accesskey=<K>", "?accesskey=<K>&token=<J>", "?accesskey=<K>&accesskey=<K>",
			"?token=<J>&token=<J>", "?token=<J>&token=", "?token=&token=<J>", "?token&token=<J>", "?token=<J>&%74oken=<J>",
			"?accesske%79=<K>&accesskey=<K>", "?accesskey=<K>%00", "?accesskey=<K>+", "?token=%zz", "?token=%", "?token=%zz&accesskey=<K>",
			"?accesskey=<K>&token=%zz", "?accesskey=a;accesskey=b", "?accesskey=<K>;accesskey=<K>", "?accesskey=<K>;", "?accesskey=<K>;x=1",
			"?x=1;token=<J>", "?x=1;%74oken=<J>", "?x;token", "?x=1;token=<J>&accesskey=<K>", "?accesskey=<K>&;token=<J>",
			"?accesskey=<K>%3Baccesskey=<K>", "?accesskey=<K>#", "?accesskey==<K>", "?accesskey=<K>=", "?accesskey=<K>?token=<J>",
			"Bearer <K>, Bearer <K>", "Bearer <K>,Basic x", "Bearer \t<K>", "Bearer <K> | Bearer <K>", "Bearer <K> | Basic x",
			"Basic x | Bearer <K>", "Bearer | Bearer <K>", "Bearer <K> | Bearer ", "Bearer <K> | ",
			"?accesskey=<K> | Bearer <K>", "?token=<J> | Bearer <J>",
			"?token=" + tooLong, "Bearer " + tooLong,
		},
	} {
		for _, line := range lines {
			queries, headers := carried(line)
			got, err := Extract(strings.Join(queries, ""), headers)
			isCredential(t, line, want, got, err)
			got, err = ExtractForwarded(queries, headers)
			isCredential(t, line, want, got, err)
		}
	}
	for _, line := range []string{"?token=" + longest, "Bearer " + longest} {
		queries, headers := carried(line)
		if got, err := Extract(strings.Join(queries, ""), headers); err != nil || got.jwt != longest {
			t.Errorf("the longest JWT: %v %v", got.Kind, err)
		}
	}
}

// A text of the form of a JWT that is as long as may be, and one that is longer.
var longest, tooLong = strings.Repeat("a", maxJWTLength-4) + ".b.c", strings.Repeat("a", maxJWTLength-3) + ".b.c"

// Contract, section 12: the original URL carries a credential under the rules of section 3, exactly one in all, and the very same query
// counts once.
func TestExtractForwardedFindsTheOneCredentialInAllQueries(t *testing.T) {
	t.Parallel()
	for want, lines := range map[string][]string{
		"none": {
			"? | ? | ?", "?x=1 | ? | ?y=2", "?token= | ?token=", "?token= | ?token",
			"?accesskey= | ?<K>", "?access | ?key=<K>", // two queries are not one text
		},
		"JWT": {"? | ?x=1 | ?token=<J>", "?x=1 | ?x=1 | Bearer <J>"},
		"key": {
			"? | ?accesskey=<K>", "?accesskey=<K> | ?accesskey=<K>", "?accesskey=<K> | ?accesskey=<K> | ?accesskey=<K>",
			"?accesskey=<K>&x | ?x=1 | ?accesskey=<K>&x", "?accesskey=<K>&token= | ?accesskey=<K>&token=", "?token= | ?accesskey=<K>",
		},
		"invalid": {
			"?accesskey=<K> | ?accesskey=<K>&", "?accesskey=<K> | ?accesskey=%76" + aKey[1:], "?accesskey=<K> | ?x=1&accesskey=<K>",
			"?accesskey=<K> | ?token=<J>", "?token=<J> | ?accesskey=<K>", "?accesskey=<K> | ?accesskey=<K> | ?token=<J>",
			"?token=<J> | ?accesskey=<K> | ?token=<J>", "?accesskey=<K> | ?accesskey=<K> | Bearer <K>", "? | ?accesskey=<K> | Bearer <J>",
			"?accesskey=<K>&accesskey=<K> | ?accesskey=<K>&accesskey=<K>", "?accesskey=<K> | ?accesskey=", "?accesskey= | ?accesskey=<K>",
			"?x=1 | ?token=<K>", "?x=1 | ?accesskey=<J>", "?accesskey=<K> | ?x=1;token=<J>", "?x=1;token=<J> | ?accesskey=<K>",
			"?accesskey=<K> | ?token=%zz", "?token=%zz | Bearer <K>",
		},
	} {
		for _, line := range lines {
			got, err := ExtractForwarded(carried(line))
			isCredential(t, line, want, got, err)
		}
	}
}

// A text that is asked about is an access key or has the form of a JWT, to the byte, or is refused.
func TestParsedCredentialIsWhatTheTextIsAndNothingNear(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{aKey: "key", aJWT: "JWT"} {
		got, err := ParseCredential(text)
		isCredential(t, text, want, got, err)
	}
	for _, text := range []string{"..", "a.b.c", longest} {
		if c, err := ParseCredential(text); err != nil || c.Kind != KindJWT || c.jwt != text {
			t.Errorf("%.20s: %v %v", text, c.Kind, err)
		}
	}
	for _, text := range []string{
		"", " ", "x", "vb_", aKey + " ", " " + aKey, aKey + "\n", aKey[:34], aKey + "a", "Bearer " + aKey, strings.ToUpper(aKey), "vb_a.b.c",
		aKey + ".b.c", "a.b", "a.b.c.d", tooLong, strings.Repeat(".", 1<<20),
	} {
		got, err := ParseCredential(text)
		isCredential(t, text, "invalid", got, err)
	}
}

// A Credential that nobody made must not be taken for anyone.
func TestNoCredentialIsNobody(t *testing.T) {
	t.Parallel()
	v := NewVerifier(VerifierConfig{Rows: must(authcache.New(authcache.Config{}))(t), Sessions: newSessions(t, testSecret, "")})
	for _, c := range []Credential{{}, {Kind: "other"}, {Kind: KindJWT}, {Kind: KindJWT, token: AccessToken{secret.New("x")}}} {
		if p, err := v.Verify(context.Background(), c, netip.Addr{}); !errors.Is(err, ErrInvalidCredential) || p.Type != "" {
			t.Errorf("%q: %v, %v", c.Kind, p, err)
		}
	}
}
