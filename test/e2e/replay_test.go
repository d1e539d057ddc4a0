//go:build e2e

package e2e

import (
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
	servertest.OK(t, header.Write(&lines))
	return rawCall(t, addr, method+" "+target+" HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n"+lines.String()+"\r\n")
}

// node is a part of a configuration.
type node struct{ of any }

// configuration reads a configuration of examples.
func configuration(t testing.TB, path string) (whole node) {
	t.Helper()
	servertest.OK(t, yaml.Unmarshal([]byte(example(t, path)), &whole.of))
	return whole
}

// at is what there is at a path of names and numbers.
func (n node) at(path ...any) node {
	for _, step := range path {
		switch of := n.of.(type) {
		case map[string]any:
			n.of = of[step.(string)]
		case []any:
			n.of = of[step.(int)]
		default:
			return node{}
		}
	}
	return n
}

// each are the elements of a list.
func (n node) each(path ...any) (all []node) {
	list, _ := n.at(path...).of.([]any)
	for _, of := range list {
		all = append(all, node{of})
	}
	return all
}

// text is a string, "" where there is none; texts are those of a list, or what its elements have under a name.
func (n node) text(path ...any) string {
	text, _ := n.at(path...).of.(string)
	return text
}

func (n node) texts(path ...any) (all []string) {
	for _, one := range n.each(path...) {
		all = append(all, one.text()+one.text("exact"))
	}
	return all
}

// traefik is a router of examples/traefik/dynamic.yaml, whose check goes to addr in place of the address in it.
func traefik(t testing.TB, name, addr string) replayed {
	t.Helper()
	c := configuration(t, "traefik/dynamic.yaml").at("http")
	router := c.at("routers", name)
	if c.at("services", router.text("service")).of == nil || len(router.texts("middlewares")) == 0 {
		t.Fatalf("the router %s is not whole: %+v", name, router)
	}
	return func(t testing.TB, a asked) decided {
		forwarded := a.header.Clone()
		for todo := router.texts("middlewares"); len(todo) > 0; {
			m := c.at("middlewares", todo[0])
			todo = todo[1:]
			auth := m.at("forwardAuth")
			headers, _ := m.at("headers", "customRequestHeaders").of.(map[string]any)
			switch {
			case m.at("chain").of != nil:
				todo = slices.Concat(m.texts("chain", "middlewares"), todo)
			case headers != nil:
				for name, value := range headers {
					if value != "" {
						t.Fatalf("%s is not removed", name)
					}
					forwarded.Del(name) // "Empty values remove the listed headers."
				}
			case auth.of != nil:
				if trust := auth.at("trustForwardHeader").of; trust != nil && trust != false {
					t.Fatal("the client's X-Forwarded-Uri is believed")
				}
				// "The following request properties are provided to the forward-auth target endpoint as X-Forwarded- headers."
				check := http.Header{
					"X-Forwarded-Method": {a.method}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"api.example.com"},
					"X-Forwarded-Uri": {a.uri}, "X-Forwarded-For": {a.from},
				}
				for _, name := range auth.texts("authRequestHeaders") {
					if values := forwarded.Values(name); values != nil {
						check[http.CanonicalHeaderKey(name)] = values
					}
				}
				target := servertest.Must(url.Parse(auth.text("address")))(t)
				answer := send(t, addr, http.MethodGet, target.RequestURI(), check)
				// "If the service answers with a 2XX code, access is granted, and the original request is performed. Otherwise, the
				// response from the authentication server is returned."
				if answer.status/100 != 2 {
					return decided{client: answer}
				}
				// "The list of headers to copy from the authentication server response and set on forwarded request, replacing any
				// existing conflicting headers."
				for _, name := range auth.texts("authResponseHeaders") {
					forwarded.Del(name)
					if values := answer.header.Values(name); values != nil {
						forwarded[http.CanonicalHeaderKey(name)] = values
					}
				}
			default:
				t.Fatalf("a middleware is missing, or none that is known here: %+v", m)
			}
		}
		return decided{passes: true, backend: arrival{method: a.method, uri: a.uri, header: forwarded}}
	}
}

// matches is what an Envoy route wants of headers: those that must be there, and after "not" those that must not.
func matches(route node) string {
	var there, not []string
	for _, h := range route.each("match", "headers") {
		switch name, exact := h.text("name"), h.text("string_match", "exact"); {
		case exact != "":
			there = append(there, name+"="+exact)
		case h.at("present_match").of == true && h.at("invert_match").of == true:
			not = append(not, name)
		case h.at("present_match").of == true:
			there = append(there, name)
		}
	}
	return strings.Join(there, " ") + " not " + strings.Join(not, " ")
}

// envoy is examples/envoy/envoy.yaml, whose check goes to addr in place of the address in it.
func envoy(t testing.TB, addr string) replayed {
	t.Helper()
	c := configuration(t, "envoy/envoy.yaml").at("static_resources")
	manager := c.at("listeners", 0, "filter_chains", 0, "filters", 0, "typed_config")
	filters, hosts := manager.each("http_filters"), manager.each("route_config", "virtual_hosts")
	filter, routes := filters[0].at("typed_config"), hosts[0].each("routes")
	service := filter.at("http_service")
	var clusters []string
	for _, cluster := range c.each("clusters") {
		clusters = append(clusters, cluster.text("name"))
	}
	removed := slices.Sorted(slices.Values(routes[0].texts("request_headers_to_remove")))
	identity := strings.Split(strings.ToLower(strings.Join(identityHeaders, " ")), " ")
	slices.Sort(identity)
	// What the replay takes for granted.
	for what, is := range map[string]bool{
		"preflights alone pass unchecked": len(routes) == 2 && routes[1].at("typed_per_filter_config").of == nil &&
			matches(routes[0]) == ":method=OPTIONS origin access-control-request-method not x-http-method-override x-http-method x-method-override",
		"and have no identity": slices.Equal(removed, identity),
		"the check comes first, the router last": filters[0].text("name") == "envoy.filters.http.ext_authz" &&
			filters[len(filters)-1].text("name") == "envoy.filters.http.router",
		"nobody passes unchecked":                    filter.at("failure_mode_allow").of == false,
		"what the client gets then is a 503":         filter.text("status_on_error", "code") == "ServiceUnavailable",
		"no body is sent":                            filter.at("with_request_body").of == nil,
		"the client gets all of a refusal's headers": service.at("authorization_response", "allowed_client_headers").of == nil,
		"the client's address is told":               manager.at("use_remote_address").of == true,
		"underscores are refused": manager.text("common_http_protocol_options", "headers_with_underscores_action") ==
			"REJECT_REQUEST",
		"the service's cluster exists": slices.Contains(clusters, service.text("server_uri", "cluster")),
	} {
		if !is {
			t.Fatalf("it is not so that %s: %+v", what, manager)
		}
	}
	allowed := filter.texts("allowed_headers", "patterns")
	upstream := service.texts("authorization_response", "allowed_upstream_headers", "patterns")
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
			if name == "Authorization" || slices.Contains(allowed, strings.ToLower(name)) {
				check[name] = values
			}
		}
		// path_prefix: "Sets a prefix to the value of authorization request header Path."
		got := send(t, addr, a.method, service.text("path_prefix")+a.uri, check)
		switch {
		case got.status >= http.StatusInternalServerError: // status_on_error: "when the authorization server returns an error"
			return decided{client: answer{status: http.StatusServiceUnavailable}}
		case got.status != http.StatusOK: // "On authorization response status HTTP 200 OK, the filter will allow traffic"
			return decided{client: got}
		}
		// allowed_upstream_headers: "Note that coexistent headers will be overridden."
		for name, values := range got.header {
			if slices.Contains(upstream, strings.ToLower(name)) {
				forwarded[name] = values
			}
		}
		for _, host := range hosts {
			for _, name := range host.texts("request_headers_to_remove") {
				forwarded.Del(name)
			}
		}
		return decided{passes: true, backend: arrival{method: a.method, uri: a.uri, header: forwarded}}
	}
}

// replay is the replayed counterpart of a site.
type replay struct {
	*fixture
	proxy replayed
	tally
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
	challenged(t, d.client, a.method, a.uri)
	return d.client
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

	revoked := r.server.make(t, "/v1.0/accesskeys", `{"name":"e2e"}`)
	r.passes(t, caller{identity: map[string]string{
		"X-Auth-Type": "accesskey", "X-Auth-Id": revoked.ID, "X-Customer-Id": revoked.CustomerID, "X-Auth-Permission": "32",
		"X-Auth-Expire": revoked.TmExpire,
	}}, request("GET", "/page", bearer(revoked.Token)...))
	r.server.deleteKey(t, revoked.ID)
	r.refuses(t, http.StatusUnauthorized, request("GET", "/page", bearer(revoked.Token)...))
}

// away demands an answer while the database is unavailable, which is the same for all.
func (r *replay) away(t *testing.T, status int) {
	servertest.OK(t, r.postgres.Stop(t.Context()))
	defer func() { servertest.OK(t, r.postgres.Start(t.Context())) }()
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
	forged := request("OPTIONS", "/page", append(slices.Clone(preflight), "X-Agent-Id", "forged", "X_Agent_Id", "forged",
		"Authorization", "Bearer x")...)
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
