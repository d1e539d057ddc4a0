package api_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// canary is a secret, or the part of one that nothing may show, and searches for it in any of its usual clothes.
type canary struct {
	name  string
	forms []string
}

func newCanary(name, plain string) canary {
	hexed := fmt.Sprintf("%x", plain)
	percent := strings.Builder{}
	for i := range len(plain) {
		fmt.Fprintf(&percent, "%%%02x", plain[i])
	}
	forms := []string{
		plain, strings.ToLower(plain), strings.ToUpper(plain), hexed, strings.ToUpper(hexed), percent.String(),
		strings.ToUpper(percent.String()), url.QueryEscape(plain), url.PathEscape(plain),
	}
	// In base64 a text looks different at each of three places; the characters that share bits with what surrounds it are
	// left out.
	for before := range 3 {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			encoded := encoding.EncodeToString([]byte(strings.Repeat("\x00", before) + plain))
			forms = append(forms, encoded[(before*8+5)/6:len(encoded)-1])
		}
	}
	return canary{name, forms}
}

// in tells in which form the canary is in a text, "" where it is not.
func (c canary) in(text string) string {
	for _, form := range c.forms {
		if strings.Contains(text, form) {
			return form
		}
	}
	return ""
}

// The control of everything below: each encoding of a canary, within other text at any place, is found, and a text
// without it is not.
func TestCanaryIsFoundInEveryForm(t *testing.T) {
	t.Parallel()
	const plain = "c4n4ry/with?odd+characters~and=some-length"
	c := newCanary("planted", plain)
	for name, encode := range map[string]func(string) string{
		"plain": func(s string) string { return s }, "upper case": strings.ToUpper, "lower case": strings.ToLower,
		"hex": func(s string) string { return fmt.Sprintf("%x", s) }, "HEX": func(s string) string { return fmt.Sprintf("%X", s) },
		"base64":    func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"base64url": func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) },
		"query":     url.QueryEscape, "path": url.PathEscape,
		"percent": func(s string) string { return "%" + strings.ReplaceAll(fmt.Sprintf("% x", s), " ", "%") },
	} {
		for before := range 4 {
			if c.in("some "+encode(strings.Repeat("x", before)+plain+"tail")+" text") == "" {
				t.Errorf("%s, %d characters in: not found", name, before)
			}
		}
		if form := c.in(encode(strings.Replace(plain, "odd", "ODE", 1))); form != "" {
			t.Errorf("%s of another text is taken for it, by %q", name, form)
		}
	}
}

// aviary sends requests and keeps everything that came back, but for the two answers that show a secret on purpose.
type aviary struct {
	*harness
	answers  strings.Builder
	requests []string // ids
}

func (a *aviary) ask(h *harness, req request) response {
	a.t.Helper()
	_, _, got, err := h.do(req)
	if err != nil {
		a.t.Fatalf("%s %s: %v", req.method, req.path, err)
	}
	a.keep(got)
	a.answers.Write(got.raw)
	return got
}

func (a *aviary) keep(got response) {
	fmt.Fprintf(&a.answers, "\n%d %v\n", got.code, got.header)
	if id := got.header.Get("X-Request-Id"); id != "" { // net/http answers some by itself
		a.requests = append(a.requests, id)
	}
}

// shows sends a request whose answer shows a secret, once, and keeps the answer without it.
func (a *aviary) shows(req request) string {
	a.t.Helper()
	_, _, got, err := a.do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	plain, _ := got.wants(http.StatusOK).json()["token"].(string)
	if plain == "" || strings.Count(string(got.raw), plain) != 1 {
		a.t.Fatalf("%s %s does not show its token once", req.method, req.path)
	}
	a.keep(got)
	a.answers.WriteString(strings.Replace(string(got.raw), plain, "", 1))
	return plain
}

// logged is the log once the lines of all requests are in it: they are written after the answers.
func (a *aviary) logged() string {
	a.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		log := a.log.String()
		if !slices.ContainsFunc(a.requests, func(id string) bool { return !strings.Contains(log, id) }) {
			return log
		}
		if time.Now().After(deadline) {
			a.t.Fatal("some requests were never logged")
		}
		time.Sleep(time.Millisecond)
	}
}

// tables is every row of every table of the database, whatever migrations may add.
func (a *aviary) tables() string {
	a.t.Helper()
	ctx := a.t.Context()
	conn, err := pgx.Connect(ctx, a.database.Reveal())
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, `
		SELECT format('%I.%I', table_schema, table_name)
		FROM information_schema.tables
		WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')`)
	if err != nil {
		a.t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(names) < 4 {
		a.t.Fatalf("tables %q: %v", names, err)
	}
	var dump strings.Builder
	for _, name := range names {
		rows, err := conn.Query(ctx, `SELECT t::text || to_jsonb(t)::text FROM `+name+` t`)
		if err != nil {
			a.t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			a.t.Fatal(err)
		}
		dump.WriteString(name + "\n" + strings.Join(lines, "\n") + "\n")
	}
	return dump.String()
}

// misplaced is a credential wherever a client may put one by mistake. A password is no shape that could be told from
// other words, so it is left out where words are logged: in a path, a query's names, and a request's id.
func misplaced(s string, hasShape bool) []request {
	header := func(name, value string) request { return request{path: "/v1.0/me", header: http.Header{name: {value}}} }
	everywhere := strings.Builder{}
	for i := range len(s) {
		fmt.Fprintf(&everywhere, "%%%02X", s[i])
	}
	escaped := url.QueryEscape(s)
	asked := func(name, value string) request { return request{path: verifyPath, header: http.Header{name: {value}}} }
	var all []request
	for _, query := range []string{
		"token=" + escaped, "accesskey=" + escaped, "token=" + everywhere.String(), "accesskey=" + everywhere.String(),
		"access_key=" + escaped, "api_key=" + escaped, "Token=" + escaped, "password=" + escaped, "x=" + everywhere.String(),
		"token=" + escaped + "&token=" + escaped, "token=" + escaped + "&accesskey=" + escaped, "token=" + escaped + "%zz",
		"x=1;token=" + escaped, "token=" + escaped + ";x=1", "token=1;accesskey=" + escaped, "x=%zz&y=" + escaped, "=" + escaped,
		"x=a=" + escaped, "x=?token=" + escaped, "x=" + url.QueryEscape(escaped),
	} {
		all = append(all, request{path: "/v1.0/me?" + query}, request{path: "/v1.0/none?" + query}, request{path: "/ping?" + query},
			request{method: http.MethodPost, path: "/auth/login?" + query, body: "{}"})
		all = append(all, request{path: verifyPath + "?" + query}, request{path: verifyPath + "/a?" + query}, asked("X-Original-Uri", "/a?"+query),
			asked("X-Forwarded-Uri", "https://x.example/?"+query), form(query))
	}
	for name, value := range map[string]string{
		"Authorization": "Bearer " + s, "X-Api-Key": s, "Cookie": "token=" + escaped, "Referer": "https://x.example/?token=" + s,
		"User-Agent": s, "X-Forwarded-For": s, "Origin": "https://" + s, "Proxy-Authorization": "Bearer " + s, "Accept": s,
		"X-Forwarded-Uri": "/?token=" + s, "X-Original-Uri": "/?token=" + s, "Traceparent": s, "Forwarded": "for=" + s, "If-None-Match": s,
		"X-Auth-Id": s, "X-Forwarded-Method": s,
	} {
		all = append(all, header(name, value), asked(name, value))
	}
	for _, value := range []string{s, "/" + s, "/a#" + s, "https://" + escaped + "@x.example/", "/a?" + escaped, "?" + escaped + "=1"} {
		all = append(all, asked("X-Original-Uri", value), asked("X-Forwarded-Uri", value))
	}
	for _, value := range []string{s, "Basic " + base64.StdEncoding.EncodeToString([]byte(s+":")), "Basic " + s, "Token " + s, "Bearer " + s + ", Bearer x"} {
		all = append(all, header("Authorization", value))
	}
	quoted := fmt.Sprintf("%q", s)
	for _, body := range []string{
		`{"token":` + quoted, `{"name":` + quoted + `,"name":1}`, `{"expire":` + quoted + `}`, `{"name":[` + quoted + `]}`, s, quoted,
		`{` + quoted + `:1}`, `{"expire":1,"x":` + quoted + "}\xff", `{"name":"` + strings.Repeat(s+" ", 70_000/len(s)) + `"}`, "token=" + escaped,
	} {
		all = append(all, request{method: http.MethodPost, path: "/v1.0/accesskeys", body: body},
			request{method: http.MethodPost, path: "/auth/login", body: body})
	}
	all = append(all,
		request{method: http.MethodPost, path: "/auth/login", body: map[string]any{"username": s, "password": s}},
		request{method: http.MethodPost, path: "/auth/login", body: map[string]any{"username": s, "password": 1}},
		request{method: http.MethodPost, path: "/auth/login", body: map[string]any{"username": "admin@acme.example", "password": s + "x"}})
	if !hasShape {
		return all
	}
	// Escapes that can't be read, and double ones.
	half, double := fmt.Sprintf("%%%02x", s[0])+s[1:], strings.ReplaceAll(everywhere.String(), "%", "%25")
	for _, path := range []string{
		"/v1.0/me?" + half + "%zz", "/v1.0/me?" + half + "%zz=1", "/v1.0/me?x=1&" + half + "%", "/v1.0/me?" + double, "/v1.0/me?" + double + "=",
		"/v1.0/accesskeys?page_size=" + double, "/v1.0/accesskeys?page_size=" + half + "%zz", "/v1.0/accesskeys?page_token=" + double + "%25",
		"/v1.0/accesskeys?page_size=%25" + double[1:], "/v1.0/" + double, "/auth/verify/" + double + "/x", "/v1.0/x%25/" + half, "/v1.0/me?a;" + half + "%zz",
		"/v1.0/accesskeys/" + strings.TrimPrefix(s, "vb_"), "/v1.0/me?" + strings.TrimPrefix(s, "vb_"), "/v1.0/me?page_size=1" + s,
		"/v1.0/accesskeys/" + s, "/v1.0/accesskeys/" + s + "/x", "/" + s, "/v1.0/me;token=" + s, "/v1.0/" + everywhere.String(),
		"/v1.0/me?" + s, "/v1.0/me?" + everywhere.String(), "/v1.0/me?" + s + "=1", "/v1.0/accesskeys?page_size=" + s,
		"/v1.0/accesskeys?page_token=" + s, "/v1.0/accesskeys?page_token=" + everywhere.String(), "/v1.0/me&token=" + s,
		"/v1.0/accesskeys?page_size=1;token=" + s, "/ping/" + s, "/auth/" + s, "//" + s, "/v1.0/" + strings.Repeat("a", 500) + "/" + s,
		"/auth/verify/" + s, "/auth/verify/a/" + everywhere.String() + "/b?x", "/auth/verify?" + s, "/auth/verify?permission=" + s, "/auth/verify?strict=" + everywhere.String(),
		"/auth/verify/a?page_token=" + s, "/auth/introspect/" + s, "/auth/introspect?x=" + s, "/auth/verify" + s,
	} {
		all = append(all, request{path: path}, request{method: http.MethodDelete, path: path})
	}
	all = append(all, header("X-Request-Id", s))
	if !strings.Contains(s, ".") {
		all = append(all, request{method: s, path: "/v1.0/me"})
	}
	return all
}

// brokenServers are servers on which requests fail in every way that ends in a 5xx. All write the same log.
func brokenServers(h *harness) map[string]*harness {
	h.t.Helper()
	panicking := *h
	panicking.serve(func(cfg *api.Config) { cfg.Verifier, cfg.Authenticator = nil, nil })
	closed := *h
	var err error
	if closed.store, err = store.Open(h.t.Context(), h.database); err != nil {
		h.t.Fatal(err)
	}
	closed.store.Close()
	closed.rows = nil
	closed.serve()
	// A database that puts all that it was given into its message, as a careless trigger does.
	h.exec(`CREATE FUNCTION blab() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN RAISE EXCEPTION 'the database says: row % of %', NEW, current_query() USING ERRCODE = '22023', DETAIL = NEW::text; END $$`)
	h.exec(`CREATE TRIGGER blab BEFORE INSERT OR UPDATE ON accesskeys FOR EACH ROW EXECUTE FUNCTION blab()`)
	return map[string]*harness{
		"panics": &panicking, "closed": &closed, "dead": h.onStoreAt(deadAddress(h.t)), "blabs": h,
	}
}

// Contract, section 1: The token itself is never stored, logged, traced, put in an error or a metric. A flock of secrets is sent to where
// they belong and to where they don't, to servers that work and to servers that fail; then every sink is searched for each of them in every
// form.
func TestNoSecretShowsInAnySink(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	a := &aviary{harness: h}
	const password = "c4n4ry passw0rd / of+the admin"
	passwords, err := auth.NewPasswords(1, time.Minute, cheapHashes)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := passwords.Hash(t.Context(), secret.New(password))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.store.SetPassword(t.Context(), store.Operator(), h.acme.admin, hash); err != nil {
		t.Fatal(err)
	}
	login := request{method: http.MethodPost, path: "/auth/login", body: map[string]any{"username": h.acme.admin.Username, "password": password}}
	session := a.shows(login)
	create := request{method: http.MethodPost, path: "/v1.0/accesskeys", body: map[string]any{"name": "n"}, header: bearing(session)}
	created, deleted := a.shows(create), a.shows(create)
	id := a.ask(h, request{method: http.MethodGet, path: "/v1.0/me", header: bearing(deleted)}).json()["id"].(string)
	for _, req := range []request{
		{method: http.MethodGet, path: "/v1.0/accesskeys?accesskey=" + created},
		{method: http.MethodGet, path: "/v1.0/accesskeys/" + id + "?token=" + session},
		{method: http.MethodPut, path: "/v1.0/accesskeys/" + id, body: map[string]any{"name": "m", "token": created}, header: bearing(created)},
		{method: http.MethodGet, path: verifyPath, header: http.Header{"X-Original-Uri": {"/a?accesskey=" + created}}},
		{method: http.MethodGet, path: verifyPath, header: http.Header{"X-Forwarded-Uri": {"/a?token=" + session}}},
		{method: http.MethodGet, path: verifyPath + "/a?accesskey=" + created},
		{method: http.MethodGet, path: verifyPath + "?permission=admin&token=" + session},
		{method: http.MethodDelete, path: "/v1.0/accesskeys/" + id, header: bearing(deleted)},
	} {
		a.ask(h, req).wants(http.StatusOK)
	}
	for _, about := range []string{created, deleted, session, auth.NewAccessToken().Reveal()} {
		a.ask(h, introspecting(session, about)).wants(http.StatusOK)
	}
	tokens := map[string]string{
		"created key": created, "deleted key": deleted, "unknown key": auth.NewAccessToken().Reveal(), "JWT": session,
		"JWT of another secret": newForger(t, session).header + "." + newForger(t, session).payload + "." + b64("a signature of nobody's own"),
	}
	var flock []canary
	for name, token := range tokens {
		if strings.HasPrefix(token, "vb_") {
			flock = append(flock, newCanary(name, token[11:])) // what comes before is the prefix, which is shown
			continue
		}
		for i, part := range strings.Split(token, ".")[1:] {
			flock = append(flock, newCanary(fmt.Sprint(name, "'s part ", i+2), part))
		}
	}
	flock = append(flock, newCanary("password", password), newCanary("JWT secret", jwtSecret), newCanary("previous JWT secret", jwtSecretPrevious))

	ask := func(h *harness, secrets map[string]string, every int) {
		for name, s := range secrets {
			for i, req := range misplaced(s, name != "password") {
				if req.method == "" {
					req.method = http.MethodGet
				}
				if i%every == 0 {
					a.ask(h, req)
				}
			}
		}
	}
	ask(h, tokens, 1)
	ask(h, map[string]string{"password": password}, 1)
	codes := map[int]int{}
	for name, broken := range brokenServers(h) {
		for _, req := range []request{login, create, {method: http.MethodGet, path: "/v1.0/me?accesskey=" + created}, {method: http.MethodGet, path: "/v1.0/me?token=" + session},
			{method: http.MethodGet, path: verifyPath + "?strict=0", header: http.Header{"X-Original-Uri": {"/a?accesskey=" + created}}},
			{method: http.MethodGet, path: verifyPath + "?strict=0&accesskey=" + created}, introspecting(session, created)} {
			got := a.ask(broken, req)
			codes[got.code]++
			if name != "blabs" && got.code < 500 {
				t.Errorf("%s: %s %s is a %d", name, req.method, req.path, got.code)
			}
		}
		ask(broken, tokens, 5)
	}
	if codes[http.StatusInternalServerError] < 2 || codes[http.StatusServiceUnavailable] < 2 {
		t.Errorf("answers %v: the failures did not all happen", codes)
	}
	metrics := h.send(request{method: http.MethodGet, path: "/metrics"}).wants(http.StatusOK)
	a.search(flock, metrics)
}

// search looks for the flock in every sink. The control: a canary that was let in through the front door of each is
// found there, and the searching is the same.
func (a *aviary) search(flock []canary, metrics response) {
	a.t.Helper()
	const planted = "c4n4ry_that_may_be_seen"
	a.exec(`DROP TRIGGER blab ON accesskeys`)
	a.exec(`UPDATE accesskeys SET description = $1 WHERE id = $2`, planted, a.acme.key.ID)
	a.ask(a.harness, request{method: http.MethodGet, path: "/v1.0/accesskeys", header: http.Header{
		"Authorization": {"Bearer " + a.acme.token}, "X-Request-Id": {planted},
	}}).wants(http.StatusOK)
	sinks := map[string]string{"log": a.logged(), "answers": a.answers.String(), "tables": a.tables(), "metrics": string(metrics.raw)}
	for name, text := range sinks {
		for _, c := range flock {
			if form := c.in(text); form != "" {
				at := strings.Index(text, form)
				a.t.Errorf("the %s shows %s: ...%q", name, c.name, text[max(0, at-300):at+len(form)])
			}
			if c.in(text+c.forms[0]) == "" || c.in(text+c.forms[len(c.forms)-1]) == "" {
				a.t.Errorf("%s would not be found in the %s", c.name, name)
			}
		}
		if name != "metrics" && newCanary("planted", planted).in(text) == "" {
			a.t.Errorf("what was let into the %s is not found there", name)
		}
	}
	// What the database says is for the log alone.
	if !strings.Contains(sinks["log"], "the database says") || strings.Contains(sinks["answers"], "the database says") {
		a.t.Error("the database's message is not in the log, or is in an answer")
	}
	if !strings.Contains(sinks["metrics"], "accesskeys_credential_checks_total") || !strings.Contains(sinks["log"], `"status":503`) {
		a.t.Error("the sinks are not what they should be")
	}
}

// What a log line shows of a URL: all that is certain, and the rest as REDACTED.
func TestLogShowsAURLAsFarAsItIsCertain(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.acme.key.ID.String()
	cursor := "2026-06-17T06:06:14Z"
	for path, want := range map[string]string{
		"/v1.0/accesskeys/" + id:                      "/v1.0/accesskeys/" + id,
		"/v1.0/accesskeys?page_size=10":               "/v1.0/accesskeys?page_size=10",
		"/v1.0/accesskeys?page_token=" + cursor:       "/v1.0/accesskeys?page_token=" + cursor,
		"/v1.0/accesskeys?page_size=10&page_token=x":  "/v1.0/accesskeys?page_size=10&page_token=REDACTED",
		"/v1.0/accesskeys?page_size=ten&unknown":      "/v1.0/accesskeys?page_size=REDACTED&unknown",
		"/v1.0/accesskeys?customer_id=" + id:          "/v1.0/accesskeys?customer_id=REDACTED",
		"/auth/verify/reports/2026/caf%C3%A9":         "/auth/verify/reports/2026/caf%C3%A9",
		"/unknown/%2541":                              "/unknown/REDACTED",
		"/unknown/vb_short":                           "/unknown/REDACTED",
		"/unknown/" + strings.Repeat("a", 31):         "/unknown/" + strings.Repeat("a", 31),
		"/unknown/" + strings.Repeat("a", 32):         "/unknown/REDACTED",
		"/unknown?a%20b=1&" + strings.Repeat("b", 32): "/unknown?a%20b=REDACTED&REDACTED",
		"/unknown?%zz=1&a%25b=1&a=1;b=2":              "/unknown?REDACTED=REDACTED&REDACTED=REDACTED&a=REDACTED",
	} {
		got := h.send(request{method: http.MethodGet, path: path, header: bearing(h.acme.token)})
		if line := h.logLine(got.header.Get("X-Request-Id")); line["path"] != want {
			t.Errorf("%s is logged as %v, want %s", path, line["path"], want)
		}
	}
}
