//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"accesskeys/internal/servertest"

	"sigs.k8s.io/yaml"
)

// Traefik and Envoy are not in Debian. What is replayed here are the requests that they send by their documentation, made
// from the configurations in examples, and what they then do by it with the service's answers:
//
// https://doc.traefik.io/traefik/middlewares/http/forwardauth/
// https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/filters/http/ext_authz/v3/ext_authz.proto

// asked is a client's request, as it comes to a proxy from an address.
type asked struct {
	method, uri string
	header      http.Header
	from        string
}

func request(method, uri string, headers ...string) asked {
	a := asked{method, uri, http.Header{}, "192.0.2.1"}
	for i := 0; i < len(headers); i += 2 {
		a.header.Add(headers[i], headers[i+1])
	}
	return a
}

// decided is what a proxy makes of it: it goes to the backend, or the client gets the answer.
type decided struct {
	passes  bool
	backend arrival
	client  answer
}

// replayed is a proxy by its documentation.
type replayed func(t testing.TB, a asked) decided

// send sends the check's request byte for byte: its path is the client's in part.
func send(t testing.TB, addr, method, target string, header http.Header) answer {
	t.Helper()
	var lines strings.Builder
	if err := header.Write(&lines); err != nil {
		t.Fatal(err)
	}
	return rawCall(t, addr, method+" "+target+" HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n"+lines.String()+"\r\n")
}

// read reads a configuration of examples.
func read(t testing.TB, path string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(example(t, path)), into); err != nil {
		t.Fatalf("examples/%s: %v", path, err)
	}
}

// traefikConfiguration is what counts of dynamic.yaml.
type traefikConfiguration struct {
	HTTP struct {
		Routers map[string]struct {
			Rule        string
			EntryPoints []string
			Middlewares []string
			Service     string
		}
		Services    map[string]any
		Middlewares map[string]struct {
			Chain       *struct{ Middlewares []string }
			Headers     *struct{ CustomRequestHeaders map[string]string }
			ForwardAuth *struct {
				Address             string
				AuthRequestHeaders  []string
				AuthResponseHeaders []string
				TrustForwardHeader  bool
			}
		}
	}
}

// traefik is a router of examples/traefik/dynamic.yaml, whose check goes to addr in place of the address in it.
func traefik(t testing.TB, router, addr string) replayed {
	t.Helper()
	var c traefikConfiguration
	read(t, "traefik/dynamic.yaml", &c)
	if c.HTTP.Services[c.HTTP.Routers[router].Service] == nil || len(c.HTTP.Routers[router].Middlewares) == 0 {
		t.Fatalf("the router %s is not whole: %+v", router, c.HTTP.Routers[router])
	}
	return func(t testing.TB, a asked) decided {
		forwarded := a.header.Clone()
		for todo := c.HTTP.Routers[router].Middlewares; len(todo) > 0; {
			m, known := c.HTTP.Middlewares[todo[0]]
			todo = todo[1:]
			switch {
			case !known:
				t.Fatal("a middleware is missing")
			case m.Chain != nil:
				todo = slices.Concat(m.Chain.Middlewares, todo)
			case m.Headers != nil:
				for name, value := range m.Headers.CustomRequestHeaders {
					if value != "" {
						t.Fatalf("%s is not removed", name)
					}
					forwarded.Del(name) // "Empty values remove the listed headers."
				}
			case m.ForwardAuth != nil:
				auth := m.ForwardAuth
				if auth.TrustForwardHeader {
					t.Fatal("the client's X-Forwarded-Uri is believed")
				}
				// "The following request properties are provided to the forward-auth target endpoint as X-Forwarded- headers."
				check := http.Header{
					"X-Forwarded-Method": {a.method}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"api.example.com"},
					"X-Forwarded-Uri": {a.uri}, "X-Forwarded-For": {a.from},
				}
				for _, name := range auth.AuthRequestHeaders {
					if values := forwarded.Values(name); values != nil {
						check[http.CanonicalHeaderKey(name)] = values
					}
				}
				target, err := url.Parse(auth.Address)
				if err != nil {
					t.Fatal(err)
				}
				answer := send(t, addr, http.MethodGet, target.RequestURI(), check)
				// "If the service answers with a 2XX code, access is granted, and the original request is performed. Otherwise, the
				// response from the authentication server is returned."
				if answer.status/100 != 2 {
					return decided{client: answer}
				}
				// "The list of headers to copy from the authentication server response and set on forwarded request, replacing any
				// existing conflicting headers."
				for _, name := range auth.AuthResponseHeaders {
					forwarded.Del(name)
					if values := answer.header.Values(name); values != nil {
						forwarded[http.CanonicalHeaderKey(name)] = values
					}
				}
			default:
				t.Fatal("a middleware is none that is known here")
			}
		}
		return decided{passes: true, backend: arrival{method: a.method, uri: a.uri, header: forwarded}}
	}
}

type exactPatterns struct{ Patterns []struct{ Exact string } }

func (e exactPatterns) match(name string) bool {
	return slices.Contains(e.Patterns, struct{ Exact string }{strings.ToLower(name)})
}

// extAuthz is the filter's configuration in envoy.yaml.
type extAuthz struct {
	Type                string                `json:"@type"`
	TransportAPIVersion string                `json:"transport_api_version"`
	FailureModeAllow    *bool                 `json:"failure_mode_allow"`
	StatusOnError       struct{ Code string } `json:"status_on_error"`
	AllowedHeaders      exactPatterns         `json:"allowed_headers"`
	WithRequestBody     any                   `json:"with_request_body"`
	HTTPService         struct {
		ServerURI struct {
			URI, Cluster, Timeout string
		} `json:"server_uri"`
		PathPrefix            string `json:"path_prefix"`
		AuthorizationResponse struct {
			AllowedUpstreamHeaders exactPatterns  `json:"allowed_upstream_headers"`
			AllowedClientHeaders   *exactPatterns `json:"allowed_client_headers"`
		} `json:"authorization_response"`
	} `json:"http_service"`
}

// connectionManager is that of envoy.yaml.
type connectionManager struct {
	UseRemoteAddress          bool `json:"use_remote_address"`
	CommonHTTPProtocolOptions struct {
		HeadersWithUnderscoresAction string `json:"headers_with_underscores_action"`
	} `json:"common_http_protocol_options"`
	RouteConfig struct {
		VirtualHosts []struct {
			RequestHeadersToRemove []string     `json:"request_headers_to_remove"`
			Routes                 []envoyRoute `json:"routes"`
		} `json:"virtual_hosts"`
	} `json:"route_config"`
	HTTPFilters []struct {
		Name        string
		TypedConfig extAuthz `json:"typed_config"`
	} `json:"http_filters"`
}

type envoyRoute struct {
	Match struct {
		Headers []struct {
			Name        string
			StringMatch struct{ Exact string } `json:"string_match"`
			Present     bool                   `json:"present_match"`
			Invert      bool                   `json:"invert_match"`
		}
	}
	RequestHeadersToRemove []string                           `json:"request_headers_to_remove"`
	TypedPerFilterConfig   map[string]struct{ Disabled bool } `json:"typed_per_filter_config"`
}

// matches is what a route wants of headers: those that must be there, and after "not" those that must not.
func (r envoyRoute) matches() string {
	var there, not []string
	for _, h := range r.Match.Headers {
		switch {
		case h.StringMatch.Exact != "":
			there = append(there, h.Name+"="+h.StringMatch.Exact)
		case h.Present && h.Invert:
			not = append(not, h.Name)
		case h.Present:
			there = append(there, h.Name)
		}
	}
	return strings.Join(there, " ") + " not " + strings.Join(not, " ")
}

type envoyConfiguration struct {
	StaticResources struct {
		Listeners []struct {
			FilterChains []struct {
				Filters []struct {
					TypedConfig connectionManager `json:"typed_config"`
				}
			} `json:"filter_chains"`
		}
		Clusters []struct{ Name string }
	} `json:"static_resources"`
}

// envoy is examples/envoy/envoy.yaml, whose check goes to addr in place of the address in it.
func envoy(t testing.TB, addr string) replayed {
	t.Helper()
	var c envoyConfiguration
	read(t, "envoy/envoy.yaml", &c)
	manager := c.StaticResources.Listeners[0].FilterChains[0].Filters[0].TypedConfig
	filter, names := manager.HTTPFilters[0].TypedConfig, []string{}
	for _, cluster := range c.StaticResources.Clusters {
		names = append(names, cluster.Name)
	}
	routes := manager.RouteConfig.VirtualHosts[0].Routes
	unchecked := routes[0]
	// What the replay takes for granted.
	for what, is := range map[string]bool{
		"preflights alone pass unchecked": len(routes) == 2 && len(routes[1].TypedPerFilterConfig) == 0 &&
			unchecked.matches() == ":method=OPTIONS origin access-control-request-method not x-http-method-override x-http-method x-method-override",
		"and have no identity": len(unchecked.RequestHeadersToRemove) == len(identityHeaders) &&
			!slices.ContainsFunc(identityHeaders, func(name string) bool {
				return !slices.Contains(unchecked.RequestHeadersToRemove, strings.ToLower(name))
			}),
		"the check comes first, the router last": manager.HTTPFilters[0].Name == "envoy.filters.http.ext_authz" &&
			manager.HTTPFilters[len(manager.HTTPFilters)-1].Name == "envoy.filters.http.router",
		"nobody passes unchecked":                    filter.FailureModeAllow != nil && !*filter.FailureModeAllow,
		"what the client gets then is a 503":         filter.StatusOnError.Code == "ServiceUnavailable",
		"no body is sent":                            filter.WithRequestBody == nil,
		"the client gets all of a refusal's headers": filter.HTTPService.AuthorizationResponse.AllowedClientHeaders == nil,
		"the client's address is told":               manager.UseRemoteAddress,
		"underscores are refused":                    manager.CommonHTTPProtocolOptions.HeadersWithUnderscoresAction == "REJECT_REQUEST",
		"the service's cluster exists":               slices.Contains(names, filter.HTTPService.ServerURI.Cluster),
	} {
		if !is {
			t.Fatalf("it is not so that %s: %+v", what, manager)
		}
	}
	return func(t testing.TB, a asked) decided {
		forwarded := a.header.Clone()
		for name := range forwarded {
			if strings.Contains(name, "_") {
				return decided{client: answer{status: http.StatusBadRequest}}
			}
		}
		// With use_remote_address Envoy appends the address that the request came from.
		forwarded["X-Forwarded-For"] = []string{strings.Join(append(forwarded["X-Forwarded-For"], a.from), ",")}
		// "For requests to an HTTP authorization server: in addition to the user's supplied matchers, Host, Method, Path,
		// Content-Length, and Authorization are additionally included in the list." "Content-Length will be set to 0."
		check := http.Header{"Content-Length": {"0"}}
		for name, values := range forwarded {
			if name == "Authorization" || filter.AllowedHeaders.match(name) {
				check[name] = values
			}
		}
		// path_prefix: "Sets a prefix to the value of authorization request header Path."
		answer := send(t, addr, a.method, filter.HTTPService.PathPrefix+a.uri, check)
		switch {
		case answer.status >= http.StatusInternalServerError: // status_on_error: "when the authorization server returns an error"
			return decided{client: refusal(http.StatusServiceUnavailable)}
		case answer.status != http.StatusOK: // "On authorization response status HTTP 200 OK, the filter will allow traffic"
			return decided{client: answer}
		}
		// allowed_upstream_headers: "Note that coexistent headers will be overridden."
		for name, values := range answer.header {
			if filter.HTTPService.AuthorizationResponse.AllowedUpstreamHeaders.match(name) {
				forwarded[name] = values
			}
		}
		for _, host := range manager.RouteConfig.VirtualHosts {
			for _, name := range host.RequestHeadersToRemove {
				forwarded.Del(name)
			}
		}
		return decided{passes: true, backend: arrival{method: a.method, uri: a.uri, header: forwarded}}
	}
}

func refusal(status int) answer {
	return answer{status: status, err: errors.New("by the proxy itself")}
}

// replay is the replayed counterpart of a site.
type replay struct {
	*fixture
	proxy    replayed
	requests int
	refused  int
	forged   int
}

func (r *replay) passes(t testing.TB, c caller, a asked) {
	t.Helper()
	r.requests++
	d := r.proxy(t, a)
	if !d.passes {
		t.Fatalf("%s %s by the %s: %d: %s", a.method, a.uri, c.name, d.client.status, d.client.body)
	}
	told(t, d.backend, c)
}

func (r *replay) refuses(t testing.TB, status int, a asked) answer {
	t.Helper()
	r.requests++
	r.refused++
	d := r.proxy(t, a)
	if d.passes || d.client.status != status {
		t.Fatalf("%s %.200s with %.300v: %+v, not a %d", a.method, a.uri, a.header, d, status)
	}
	challenge := d.client.header.Get("WWW-Authenticate")
	if (status == http.StatusUnauthorized) != strings.HasPrefix(challenge, `Bearer realm="voipbin"`) {
		t.Fatalf("%s %.200s: a %d with WWW-Authenticate: %q", a.method, a.uri, status, challenge)
	}
	return d.client
}

// row adds the line to the table.
func (r *replay) row(t testing.TB, what, with string) {
	t.Helper()
	counted(t, what, with, "%d requests, %d refused, %d with a forged identity: none arrived", r.requests, r.refused, r.forged)
}

// everything replays what every proxy has to do.
func (r *replay) everything(t *testing.T) {
	key, jwt := r.admin.credential, r.agent.credential
	for _, c := range r.callers {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"} {
			r.passes(t, c, request(method, "/page", bearer(c.credential)...))
			r.passes(t, c, request(method, "/page?a=%2F&strict=1&"+c.parameter+"="+c.credential))
			r.refuses(t, http.StatusUnauthorized, request(method, "/page"))
			r.refuses(t, http.StatusUnauthorized, request(method, "/page", bearer(r.bad["deleted"])...))
		}
		// Envoy's check has the client's path in its own: wherever that leads, it is no way around.
		for _, path := range []string{"/", "//", "/../", "/../../ping", "/../login", "/..%2f..%2fping", "/%2e%2e/%2e%2e/ping",
			"/auth/verify", "/auth/login", "/v1.0/accesskeys", "/a;b", "/healthz", "/.", "/page/", "/%00"} {
			r.passes(t, c, request("GET", path, bearer(c.credential)...))
			r.passes(t, c, request("GET", path+"?"+c.parameter+"="+c.credential))
			r.refuses(t, http.StatusUnauthorized, request("GET", path))
			r.refuses(t, http.StatusUnauthorized, request("POST", path, bearer(r.bad["never made"])...))
		}
		// What no server can read passes nowhere by itself.
		if d := r.proxy(t, request("GET", "/%zz")); d.passes {
			t.Fatal("a path that can't be read got to the backend")
		}
		for _, lines := range forgeries() {
			forged := bearer(c.credential)
			underscore := false
			for _, line := range lines {
				name, value, _ := strings.Cut(line, ": ")
				underscore = underscore || strings.Contains(name, "_")
				if name != "Connection" { // which Envoy and Traefik see to themselves, before they ask
					forged = append(forged, name, value)
				}
			}
			r.forged++
			d := r.proxy(t, request("GET", "/page", forged...))
			if r.requests++; d.passes {
				told(t, d.backend, c)
			} else if r.refused++; !underscore || d.client.status != http.StatusBadRequest {
				t.Fatalf("%q by the %s: %d", lines, c.name, d.client.status)
			}
		}
	}
	for _, credential := range r.bad {
		r.refuses(t, http.StatusUnauthorized, request("GET", "/page", bearer(credential)...))
		r.refuses(t, http.StatusUnauthorized, request("GET", "/page?accesskey="+credential))
		r.refuses(t, http.StatusUnauthorized, request("GET", "/page?accesskey="+key+"&token="+credential))
		r.refuses(t, http.StatusUnauthorized, request("GET", "/page?accesskey="+credential, bearer(key)...))
	}
	r.refuses(t, http.StatusUnauthorized, request("GET", "/page?accesskey="+jwt))
	r.refuses(t, http.StatusUnauthorized, request("GET", "/page?accesskey="+key+"&accesskey="+key))
	r.refuses(t, http.StatusUnauthorized, request("GET", "/page", append(bearer(key), bearer(jwt)...)...))
	for _, header := range []string{"X-Original-URI", "X-Forwarded-Uri"} {
		r.refuses(t, http.StatusUnauthorized, request("GET", "/page", header, "/page?accesskey="+key))
		r.passes(t, r.admin, request("GET", "/page", append(bearer(key), header, "/?accesskey="+r.bad["deleted"])...))
	}
	r.passes(t, r.agent, request("GET", "/page?permission=superadmin&strict=2&strict=3&nonsense", bearer(jwt)...))

	id, token := newKey(t, r.client, r.server.url(""))
	r.passes(t, caller{identity: map[string]string{
		"X-Auth-Type": "accesskey", "X-Auth-Id": id, "X-Customer-Id": r.admin.identity["X-Customer-Id"], "X-Auth-Permission": "32",
		"X-Auth-Expire": r.expireOfKey(t, id),
	}}, request("GET", "/page", bearer(token)...))
	deleteKey(t, r.client, r.server.url(""), id)
	r.refuses(t, http.StatusUnauthorized, request("GET", "/page", bearer(token)...))
}

func (w *fixture) expireOfKey(t testing.TB, id string) string {
	t.Helper()
	var key keyMade
	w.api(t, http.MethodGet, "/v1.0/accesskeys/"+id, "", &key)
	return key.TmExpire
}

// away demands an answer while the database is unavailable, which is the same for all.
func (r *replay) away(t *testing.T, status int) {
	if err := r.postgres.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.postgres.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}()
	servertest.Eventually(t, "nobody is let in from memory any more", func() bool {
		return !r.proxy(t, request("GET", "/page", bearer(r.admin.credential)...)).passes
	})
	for _, credential := range []string{r.admin.credential, r.bad["deleted"]} {
		a := r.refuses(t, status, request("GET", "/page", bearer(credential)...))
		if a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "SERVICE_UNAVAILABLE") {
			t.Errorf("the database away: %+v", a)
		}
	}
}

// limited demands that addresses are told apart, of which one makes more requests than it may.
func (r *replay) limited(t *testing.T, status int) {
	one := request("GET", "/page", append(bearer(r.admin.credential), "X-Forwarded-For", "198.51.100.7")...)
	other := one
	other.from = "192.0.2.2"
	for range burst {
		r.passes(t, r.admin, one)
	}
	if a := r.refuses(t, status, one); a.header.Get("Retry-After") == "" || !strings.Contains(a.body, "RATE_LIMIT_EXCEEDED") {
		t.Errorf("beyond the limit: %+v", a)
	}
	r.passes(t, r.admin, other)
}

func TestTraefiksRequestsAreAnsweredAsItsDocumentationWants(t *testing.T) {
	w := newFixture(t)
	r := &replay{fixture: w, proxy: traefik(t, "api", w.server.addr)}
	r.everything(t)

	r.proxy = traefik(t, "admin", w.server.addr)
	for _, c := range r.callers {
		for _, query := range []string{"", "?permission=agent", "?strict=0&permission=admin", "?permission=admin&strict=0"} {
			if a := request("GET", "/admin/page"+query, bearer(c.credential)...); c.identity["X-Auth-Permission"] == "32" {
				r.passes(t, c, a)
			} else {
				r.refuses(t, http.StatusForbidden, a)
			}
		}
	}
	// Its router lets preflights pass, with no identity.
	forged := request("OPTIONS", "/page", append(slices.Clone(preflight), "X-Agent-Id", "forged", "X_Agent_Id", "forged", "Authorization", "Bearer x")...)
	d := traefik(t, "preflight", w.server.addr)(t, forged)
	if !d.passes {
		t.Error("a preflight does not pass")
	}
	told(t, d.backend, caller{name: "preflight", identity: map[string]string{}})
	r.proxy = traefik(t, "api", w.server.addr)
	r.away(t, http.StatusServiceUnavailable)
	w.limit(t)
	r.proxy = traefik(t, "api", w.server.addr)
	r.limited(t, http.StatusTooManyRequests)
	r.row(t, "Traefik's requests, replayed (not run)", "its documentation")
}

func TestEnvoysRequestsAreAnsweredAsItsDocumentationWants(t *testing.T) {
	w := newFixture(t)
	r := &replay{fixture: w, proxy: envoy(t, w.server.addr)}
	r.everything(t)
	// A 503 would be Envoy's own, without a word about why: with a 403 the client learns it.
	r.away(t, http.StatusForbidden)
	w.limit(t)
	r.proxy = envoy(t, w.server.addr)
	r.limited(t, http.StatusForbidden)
	r.row(t, "Envoy's requests, replayed (not run)", "its documentation")
}
