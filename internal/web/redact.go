package web

import (
	"net/url"
	"slices"
	"strings"

	"accesskeys/internal/secret"
)

// Tokens are the shapes of the opaque tokens that no log may hold: a prefix and so many random characters.
type Tokens struct {
	Prefixes []string
	Random   int
}

// holds reports whether s has room for a token after one of the prefixes.
func (t Tokens) holds(s string) bool {
	return slices.ContainsFunc(t.Prefixes, func(prefix string) bool {
		_, rest, found := strings.Cut(s, prefix)
		return found && len(rest) >= t.Random
	})
}

// begins reports whether a prefix is in s, whatever follows it.
func (t Tokens) begins(s string) bool {
	return slices.ContainsFunc(t.Prefixes, func(prefix string) bool { return strings.Contains(s, prefix) })
}

// redactedURI is a request's path and query, fit for a log.
//
// SECURITY: this is a list of what may be shown, not of what must not: a credential under a misspelt name, or pasted
// into the path, is as secret as one in its place. What can't be read for certain, because of escapes that are wrong or double, is not shown.
func (k *Kit) redactedURI(u *url.URL) string {
	var b strings.Builder
	b.WriteString(k.redactedPath(u.EscapedPath()))
	if u.RawQuery == "" {
		return b.String()
	}
	for i, pair := range strings.Split(clipped(u.RawQuery), "&") {
		if pair == "" {
			continue
		}
		name, value, hasValue := strings.Cut(pair, "=")
		b.WriteByte("?&"[min(i, 1)])
		if !k.showable(name) {
			name = secret.Redacted
		}
		b.WriteString(name)
		if hasValue {
			b.WriteByte('=')
			if !showableParam(name, value) {
				value = secret.Redacted
			}
			b.WriteString(value)
		}
	}
	return b.String()
}

// showableParam reports whether a parameter is what its name says, and no secret.
func showableParam(name, value string) bool {
	switch name {
	case "page_size":
		_, ok := parsePageSize([]string{value})
		return ok && len(value) < 20
	case "page_token":
		plain, err := url.QueryUnescape(value)
		_, ok := parsePageToken(plain)
		return err == nil && ok
	default:
		return false
	}
}

// redactedPath replaces the path's segments that may hold credentials.
func (k *Kit) redactedPath(path string) string {
	segments := strings.Split(clipped(path), "/")
	for i, segment := range segments {
		if !k.showable(segment) {
			segments[i] = secret.Redacted
		}
	}
	return strings.Join(segments, "/")
}

// showable reports whether a piece of a URL can be read and holds no access key, JWT or temp token, nor anything that is as long as one.
func (k *Kit) showable(s string) bool {
	plain, err := url.PathUnescape(s)
	if err != nil || strings.Contains(plain, "%") {
		return false
	}
	if _, isID := ParseID(plain); isID {
		return true
	}
	word := func(r rune) bool { return !strings.ContainsRune(requestIDChars, r) }
	return !k.tokens.begins(plain) && !strings.Contains(plain, "eyJ") &&
		!slices.ContainsFunc(strings.FieldsFunc(plain, word), func(w string) bool { return len(w) >= k.tokens.Random })
}

// clipped bounds what one request can add to the log.
func clipped(s string) string {
	const most = 512
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
