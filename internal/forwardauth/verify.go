// Package forwardauth answers the proxies and gateways that ask, for each of their requests, whether it may pass and who sent it: nginx's
// auth_request, Traefik's and Caddy's forward auth, Envoy's ext_authz, and RFC 7662's introspection (docs/forward-auth.md).
package forwardauth

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"accesskeys/internal/auth"
	"accesskeys/internal/authn"
	"accesskeys/internal/web"
)

// verifyPath is where a proxy asks whether a request may pass.
const verifyPath = "/auth/verify"

// IsVerify reports whether a request is a proxy's question.
func IsVerify(r *http.Request) bool {
	rest, found := strings.CutPrefix(r.URL.Path, verifyPath)
	return found && (rest == "" || rest[0] == '/')
}

// Config is what the routes need.
type Config struct {
	Kit           *web.Kit
	Authenticator *authn.Authenticator
	Verifier      *auth.Verifier
	// Limit is that of /v1.0: what is checked here can't be guessed, so that it is not limited as a login is.
	Limit web.Limiter
}

type server struct{ cfg Config }

// Mount adds the routes to a router.
func Mount(r chi.Router, cfg Config) {
	s := &server{cfg}
	verify := web.Private(s.cfg.Kit.Handle(s.verify))
	r.Handle(verifyPath, verify)
	r.Handle(verifyPath+"/*", verify) // Envoy puts the path that it asks about behind
	r.With(web.Private, s.cfg.Kit.RateLimit(s.cfg.Limit), s.cfg.Authenticator.Middleware(s.cfg.Kit)).Post("/auth/introspect", s.cfg.Kit.Handle(s.introspect))
}

// The statuses that errors of the check are answered with, in place of their own. nginx's auth_request knows 401 and 403, and makes
// a 500 of everything else that is not a success. What is neither a 401 nor to be told apart is a 403: a request that nobody could check
// doesn't pass, and its credential was not refused.

func strictStatuses(code int) int {
	if code == http.StatusUnauthorized {
		return code
	}
	return http.StatusForbidden
}

// relaxedStatuses are also 429 and 503.
func relaxedStatuses(code int) int {
	switch {
	case code == http.StatusTooManyRequests:
		return code
	case code >= http.StatusInternalServerError:
		return http.StatusServiceUnavailable
	default:
		return strictStatuses(code)
	}
}

// originalURIs are the headers in which proxies say which request they ask about: nginx by our configuration, Traefik and
// Caddy by themselves, ingress-nginx with the whole URL.
var originalURIs = [...]string{"X-Original-Uri", "X-Original-Url", "X-Forwarded-Uri"}

// originalQueries are the raw queries of the requests that a proxy asks about.
func originalQueries(r *http.Request) (queries []string) {
	for _, name := range originalURIs {
		for _, uri := range r.Header[name] {
			_, query, _ := strings.Cut(uri, "?")
			queries = append(queries, query)
		}
	}
	return queries
}

// verifyOptions are what a proxy's configuration asks for.
type verifyOptions struct {
	permission auth.Permission // PermissionNone: any caller will do
	statuses   func(code int) int
	in         carriers
}

// carriers are where a credential is looked for. An API behind the proxy may have a "token" in its queries that is none of ours.
type carriers int

const (
	inHeader carriers = 1 << iota
	inQuery
)

// carriersNamed are those of the option's values, 0 where one is not known.
func carriersNamed(values []string) (in carriers) {
	for _, value := range values {
		switch value {
		case "header":
			in |= inHeader
		case "query":
			in |= inQuery
		case "both":
			in |= inHeader | inQuery
		default:
			return 0
		}
	}
	return in
}

func defaultOptions() verifyOptions {
	return verifyOptions{statuses: strictStatuses, in: inHeader | inQuery}
}

// optionsOf reads the options from the query of the proxy's own request. Behind verifyPath comes the client's query, not the proxy's.
//
// SECURITY: an option that nobody knows is an error: one letter too few in "permission" must not open a door to everybody. Where
// the query is the same as the original one, a proxy may have left the client's in its place, with names of all kinds in it. What is
// an option counts there too, since a client can write the original query as it likes: it may ask more of itself, never less.
func optionsOf(r *http.Request) (verifyOptions, error) {
	options := defaultOptions()
	if r.URL.Path != verifyPath || r.URL.RawQuery == "" {
		return options, nil
	}
	copied := slices.Contains(originalQueries(r), r.URL.RawQuery)
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil && !copied {
		return options, badOption("", "the query can't be read")
	}
	for name, given := range values {
		switch {
		case name == auth.ParamToken, name == auth.ParamAccessKey: // the credential, which is read elsewhere
		case name == "in":
			if options.in = carriersNamed(given); options.in == 0 {
				return options, badOption(name, "takes header, query or both")
			}
		case name != "permission" && name != "strict":
			if !copied {
				return options, badOption("", "there is no such option; there are in, permission and strict")
			}
		case len(given) > 1:
			return options, badOption(name, "may be given once")
		case name == "permission":
			var known bool
			if options.permission, known = auth.NamedPermission(given[0]); !known {
				return options, badOption(name, "takes superadmin, admin, manager or agent")
			}
		case given[0] == "0":
			options.statuses = relaxedStatuses
		case given[0] != "1":
			return options, badOption(name, "takes 0 or 1")
		}
	}
	return options, nil
}

func badOption(name, message string) error {
	return web.BadRequest(web.ReasonInvalidRequestParameter, "Invalid query parameter.", web.Detail{Field: name, Message: message})
}

// verify tells a proxy whether a request may pass, and who sent it. The credential is that of the check itself or that of
// the request which it is about, exactly one in all (contract, section 3).
func (s *server) verify(w http.ResponseWriter, r *http.Request) error {
	options, optionsErr := optionsOf(r)
	if optionsErr != nil {
		options = defaultOptions()
	}
	ev := web.EventOf(r)
	ev.MapStatus = options.statuses // before anything is answered
	if err := s.cfg.Limit.Check(r); err != nil {
		return err
	}
	var queries, headers []string
	if options.in&inQuery != 0 {
		queries = append(originalQueries(r), r.URL.RawQuery)
	}
	if options.in&inHeader != 0 {
		headers = r.Header["Authorization"]
	}
	credential, err := auth.ExtractForwarded(queries, headers)
	if err := s.cfg.Authenticator.Identify(r, credential, err); err != nil {
		return err
	}
	if optionsErr != nil {
		return optionsErr
	}
	p := authn.PrincipalOf(r)
	if options.permission != auth.PermissionNone && !p.Permission.Reaches(options.permission) {
		return authn.PermissionDenied()
	}
	setIdentity(w.Header(), p)
	w.Header()["Content-Length"] = noContent
	w.WriteHeader(http.StatusOK)
	return nil
}

// noContent is the Content-Length of an answer without a body. Nobody changes it.
var noContent = []string{"0"}

// identityHeaders say who the caller is, in the order of setIdentity.
var identityHeaders = [...]string{"X-Auth-Type", "X-Auth-Id", "X-Customer-Id", "X-Agent-Id", "X-Auth-Permission", "X-Auth-Expire"}

// setIdentity says who the caller is.
//
// SECURITY: all headers are there every time, also one without a value: a proxy copies them over the client's, and the client's own
// X-Agent-Id must not stay where ours has nothing to say.
func setIdentity(header http.Header, p auth.Principal) {
	agent := ""
	if p.AgentID != uuid.Nil {
		agent = p.AgentID.String()
	}
	values := [len(identityHeaders)]string{
		string(p.Type), p.ID.String(), p.CustomerID.String(), agent,
		strconv.FormatInt(int64(p.Permission), 10), p.Expires.UTC().Format(web.TimestampLayout),
	}
	for i, name := range identityHeaders {
		header[name] = values[i : i+1 : i+1]
	}
}
