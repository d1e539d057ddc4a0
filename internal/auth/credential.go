package auth

import (
	"net/url"
	"slices"
	"strings"
)

// CredentialKind tells an access key from a JWT.
type CredentialKind string

// The kinds of credential.
const (
	KindAccessKey CredentialKind = "accesskey"
	KindJWT       CredentialKind = "jwt"
)

// maxJWTLength bounds a token before anything parses it. Ours stay below 5,000 bytes with the longest names in the
// longest escapes.
const maxJWTLength = 8192

// Credential is what a request presented: of the right kind for its carrier, not verified.
type Credential struct {
	Kind  CredentialKind
	token AccessToken // of KindAccessKey
	jwt   string      // of KindJWT
}

// The names of the two carriers in a query (contract, section 3).
const (
	ParamToken     = "token"
	ParamAccessKey = "accesskey"
)

// Extract finds the one credential in a request's raw query and its Authorization headers. It returns
// ErrNoCredential where there is none, and a refusal (ErrInvalidCredential) where there are several, or one that its
// carrier does not take. It reads nothing else of a request.
//
// SECURITY: it parses the query itself. url.ParseQuery drops a pair that it can't decode, or that holds a semicolon, so
// a second credential could hide there; here such a pair counts as a credential if it may be one.
func Extract(rawQuery string, authorization []string) (Credential, error) {
	return ExtractForwarded([]string{rawQuery}, authorization)
}

// ExtractForwarded is Extract for a request that asks about another one: its raw queries are its own and those of the URLs
// that it names. One that is given again is a copy, as some proxies make them, and counts once.
func ExtractForwarded(rawQueries, authorization []string) (Credential, error) {
	var found presented
	for i, rest := range rawQueries {
		if slices.Contains(rawQueries[:i], rest) {
			continue
		}
		for rest != "" {
			var pair string
			pair, rest, _ = strings.Cut(rest, "&")
			if err := found.query(pair); err != nil {
				return Credential{}, err
			}
		}
	}
	if err := found.header(authorization); err != nil {
		return Credential{}, err
	}
	switch {
	case found.carrier == carrierNone:
		return Credential{}, ErrNoCredential
	case found.repeated:
		return Credential{}, refused(causeSeveral)
	}
	switch found.carrier {
	case carrierAccessKey:
		return accessKeyCredential(found.value)
	case carrierToken:
		return jwtCredential(found.value)
	default:
		return ParseCredential(found.value)
	}
}

// ParseCredential is the credential that a text is, of either kind; a text that has the form of neither is a refusal
// (ErrInvalidCredential).
func ParseCredential(text string) (Credential, error) {
	if strings.HasPrefix(text, TokenPrefix) {
		return accessKeyCredential(text)
	}
	return jwtCredential(text)
}

type carrier int

const (
	carrierNone carrier = iota
	carrierToken
	carrierAccessKey
	carrierBearer
)

// presented gathers what a request presents. Empty values count as absent, but for a carrier that is repeated: which
// of its values counts is then anybody's guess.
type presented struct {
	carrier  carrier
	value    string
	seen     [carrierBearer + 1]bool
	repeated bool
}

func (p *presented) add(c carrier, value string) error {
	p.repeated = p.repeated || p.seen[c]
	p.seen[c] = true
	if value == "" {
		return nil
	}
	if p.carrier != carrierNone {
		return refused(causeSeveral)
	}
	p.carrier, p.value = c, value
	return nil
}

// query takes one pair of a query.
func (p *presented) query(pair string) error {
	rawName, rawValue, _ := strings.Cut(pair, "=")
	if strings.Contains(pair, ";") {
		// Some servers split at semicolons. A server that reads such a query differently from us must not find a credential
		// in it that we overlooked.
		for piece := range strings.SplitSeq(pair, ";") {
			name, _, _ := strings.Cut(piece, "=")
			if carrierNamed(name) != carrierNone {
				return refused(causeMalformed)
			}
		}
		return nil
	}
	c := carrierNamed(rawName)
	if c == carrierNone {
		return nil
	}
	value, err := url.QueryUnescape(rawValue)
	if err != nil {
		return refused(causeMalformed)
	}
	return p.add(c, value)
}

// carrierNamed tells which carrier a query's name means, escapes decoded.
func carrierNamed(rawName string) carrier {
	name, err := url.QueryUnescape(rawName)
	if err != nil {
		return carrierNone // no decoder makes a name of it
	}
	switch name {
	case ParamToken:
		return carrierToken
	case ParamAccessKey:
		return carrierAccessKey
	default:
		return carrierNone
	}
}

// header takes the request's Authorization headers. Only the Bearer scheme is read (RFC 6750, section 2.1).
func (p *presented) header(authorization []string) error {
	for _, header := range authorization {
		scheme, value, _ := strings.Cut(header, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			continue
		}
		value = strings.Trim(value, " ")
		if value != "" && len(authorization) > 1 {
			// A proxy may forward the one that we would not read.
			return refused(causeSeveral)
		}
		if err := p.add(carrierBearer, value); err != nil {
			return err
		}
	}
	return nil
}

func accessKeyCredential(value string) (Credential, error) {
	token, ok := ParseAccessToken(value)
	if !ok {
		return Credential{}, refused(causeMalformed)
	}
	return Credential{Kind: KindAccessKey, token: token}, nil
}

func jwtCredential(value string) (Credential, error) {
	if len(value) > maxJWTLength || strings.Count(value, ".") != 2 {
		return Credential{}, refused(causeMalformed)
	}
	return Credential{Kind: KindJWT, jwt: value}, nil
}
