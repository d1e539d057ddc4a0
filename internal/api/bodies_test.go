package api_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// keyBodies are the two routes that take an access key's fields, as a function of the body.
func (h *harness) keyBodies() map[string]func(body any) response {
	path := "/v1.0/accesskeys/" + h.acme.key.ID.String()
	return map[string]func(any) response{
		"POST": func(body any) response { return h.post("/v1.0/accesskeys", h.acme.adminJWT, body) },
		"PUT":  func(body any) response { return h.put(path, h.acme.adminJWT, body) },
	}
}

// Contract, section 4: expire is a positive whole number of seconds... Zero, negative, fractional, a string, or past 100 years: 400
// INVALID_ARGUMENT with details; 7: "never wraps". A whole number is written as one: digits, no exponent.
func TestExpireOutsideItsBoundsIsRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	count := func() string { return h.text(`SELECT count(*) FROM accesskeys`) }
	before := count()
	for _, expire := range []string{
		"0", "-0", "-1", "-86400", "1.5", "0.5", "1.0", "1e3", "1E0", `"60"`, `""`, "true", "false", "[60]", "{}",
		"3153600001", "4295053696", "9223372036", "9223372037", "9223372036854775807", "9223372036854775808",
		"18446744073709551676", "-9223372036854775809", "1000000000000000000000000000000", "1e30", "1e400",
	} {
		refusedFields(t, h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"expire":`+expire+`}`), "expire")
	}
	for _, noJSON := range []string{"+60", "060", "0x3c", "60s", "NaN", "Infinity", ".5", "6_0", ""} {
		h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"expire":`+noJSON+`}`).refuses(400, "INVALID_JSON_BODY")
	}
	if after := count(); after != before {
		t.Errorf("there were %s keys, and are %s", before, after)
	}
	for expire, want := range map[string]time.Duration{
		"1": time.Second, "60": time.Minute, "3153600000": 100 * 365 * 24 * time.Hour, "null": 365 * 24 * time.Hour,
	} {
		got := h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"expire":`+expire+`}`).wants(200).json()
		if lives := parseTime(t, got["tm_expire"]).Sub(parseTime(t, got["tm_create"])); lives != want {
			t.Errorf("expire %s lives %s", expire, lives)
		}
	}
}

// Contract, section 4: name at most 255 characters, detail at most 4096, both valid UTF-8 without NUL ... otherwise 400; 1: every error has
// its details where there is something to say.
func TestFieldsThatAreNotFitAreNamed(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for method, send := range h.keyBodies() {
		for body, fields := range map[string][]string{
			`{"name":1}`:                       {"name"},
			`{"name":true}`:                    {"name"},
			`{"name":{}}`:                      {"name"},
			`{"name":["a"]}`:                   {"name"},
			`{"detail":0}`:                     {"detail"},
			`{"name":"a\u0000b"}`:              {"name"},
			`{"detail":"\u0000"}`:              {"detail"},
			`{"name":[],"detail":[]}`:          {"name", "detail"},
			`{"detail":false,"name":"\u0000"}`: {"name", "detail"},
			`{"name":"` + strings.Repeat("x", 256) + `"}`:            {"name"},
			`{"name":"` + strings.Repeat("😀", 256) + `"}`:            {"name"},
			`{"name":"` + strings.Repeat(`\ud83d\ude00`, 256) + `"}`: {"name"},
			`{"detail":"` + strings.Repeat("x", 4097) + `"}`:         {"detail"},
			`{"detail":"` + strings.Repeat("😀", 4097) + `"}`:         {"detail"},
		} {
			got := send(body)
			if got.code == 200 {
				t.Errorf("%s accepts %.60s", method, body)
				continue
			}
			refusedFields(t, got, fields...)
		}
	}
	refusedFields(t, h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"expire":0,"name":1,"detail":2}`), "name", "detail", "expire")
	if after := h.get("/v1.0/accesskeys/"+h.acme.key.ID.String(), h.acme.adminJWT).wants(200).json(); after["name"] != h.acme.key.Name ||
		parseTime(t, after["tm_update"]) != h.acme.key.TmUpdate.UTC() {
		t.Errorf("a refused PUT left %v", after)
	}
}

// Contract, section 4: lengths are counted in characters; 7: "characters outside the basic plane in a name, 256 characters: stored; 400".
// What is stored comes back as it was, by every route.
func TestTextComesBackAsItWasSent(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, c := range []struct{ name, detail string }{
		{strings.Repeat("x", 255), strings.Repeat("y", 4096)},
		{strings.Repeat("é", 255), strings.Repeat("日", 4096)},
		{strings.Repeat("😀", 255), strings.Repeat("𝔘", 4096)},
		{"", ""},
		{" leading and trailing \n\t", "\u0001\u001f\u007f\u2028\ufeff"},
		{"e\u0301 is not é", "\ufffd and \U0010ffff and \uffff"},
		{`<script>"&'\`, `%s $1 '; DROP TABLE accesskeys; --`},
		{"null", "\u202eright to left"},
	} {
		want := map[string]string{"name": c.name, "detail": c.detail}
		for method, send := range h.keyBodies() {
			got := send(want).wants(200).json()
			fetched := h.get("/v1.0/accesskeys/"+got["id"].(string), h.acme.adminJWT).wants(200).json()
			for _, body := range []map[string]any{got, fetched} {
				if body["name"] != c.name || body["detail"] != c.detail {
					t.Errorf("%s: sent %.40q %.40q, got %.40q %.40q", method, c.name, c.detail, body["name"], body["detail"])
				}
			}
			if stored := h.text(`SELECT name || description FROM accesskeys WHERE id = $1`, got["id"]); stored != c.name+c.detail {
				t.Errorf("%s: stored %.80q", method, stored)
			}
		}
	}
	// The two spellings of one character are the same character.
	if got := h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"name":"\ud83d\ude00"}`).wants(200).json(); got["name"] != "😀" {
		t.Errorf("name %q", got["name"])
	}
}

// Contract, section 4: a body is one JSON object, valid UTF-8; whatever else is a 400 and changes nothing.
func TestBodyThatIsNotOneObjectIsRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const deep = 30_000
	for _, body := range []string{
		"[]", "[{}]", `"name"`, "null", "1", "true", "{", "}", `{"name"}`, `{"name":}`, `{"name":"a",}`, `{name:"a"}`, `{'name':'a'}`,
		`{"name":"a"`, `{"name":"a}`, `{} {}`, `{}x`, `{}null`, `{"name":"a"}{"name":"b"}`, `{/* */}`, "name=a",
		`{"name":"a","name":"b"}`, `{"name":"a","name":null}`, `{"more":1,"more":2}`, `{"name":"a","n\u0061me":"b"}`,
		"{\"name\":\"\xff\"}", "{\"name\":\"\xc0\xaf\"}", "{\"name\":\"\xed\xa0\x80\"}", "{\"name\":\"caf\xe9\"}", "{\"more\":\"\xff\"}",
		`{"name":"\ud800"}`, `{"name":"\udc00\ud800"}`, `{"name":"\ud83d"}`, `{"name":"\u12"}`, `{"name":"\x41"}`,
		"{\"name\":\"\x00\"}", "{\"name\":\"a\nb\"}", "\ufeff{}", "\u00a0", "\f", "\x00", "{}\x00", "{\x00}", "\xff\xfe{\x00}\x00",
		strings.Repeat("[", deep), strings.Repeat(`{"a":`, 10_900) + "1" + strings.Repeat("}", 10_900),
		`{"more":` + strings.Repeat("[", deep) + strings.Repeat("]", deep) + `}`,
	} {
		for method, send := range h.keyBodies() {
			got := send(body)
			if got.code != 400 || got.json()["error"].(map[string]any)["reason"] != "INVALID_JSON_BODY" {
				t.Errorf("%s %.60q gave %d %s", method, body, got.code, got.raw)
			}
		}
	}
	if after := h.text(`SELECT count(*) || string_agg(name, '' ORDER BY name) FROM accesskeys`); after != "2of acmeof globex" {
		t.Errorf("afterwards there is %s", after)
	}
}

// Contract, section 4: An empty body is {}, "In every body a field that is null counts as absent", "Unknown fields are ignored", and field
// names are as the contract writes them.
func TestBodyMayBeEmptyOrHoldMore(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, body := range []any{
		nil, "", `{}`, " {\n} ", `{"name":null,"detail":null,"expire":null}`, `{"more":[{"deep":{}}],"x":"\u0000"}`,
		`{"Name":"x","NAME":"y","Expire":1,"detail ":"z"}`, `{"token":"vb_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","id":1}`,
		`{"more":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`,
	} {
		made := h.post("/v1.0/accesskeys", h.acme.adminJWT, body).wants(200).json()
		year := parseTime(t, made["tm_expire"]).Sub(parseTime(t, made["tm_create"])) == 365*24*time.Hour
		if made["name"] != "" || made["detail"] != "" || !year || made["token"] == "vb_"+strings.Repeat("a", 32) {
			t.Errorf("%.60v made %v", body, made)
		}
		kept := h.put("/v1.0/accesskeys/"+h.acme.key.ID.String(), h.acme.adminJWT, body).wants(200).json()
		if kept["name"] != h.acme.key.Name || kept["detail"] != "" {
			t.Errorf("%.60v left %v", body, kept)
		}
	}
	// The Content-Type is not looked at.
	for _, contentType := range []string{"", "text/plain", "application/json; charset=utf-8"} {
		header := bearing(h.acme.adminJWT)
		header.Set("Content-Type", contentType)
		_, _, got, err := h.do(request{method: "POST", path: "/v1.0/accesskeys", body: `{"name":"n"}`, header: header})
		if err != nil {
			t.Fatal(err)
		}
		if got.wants(200).json()["name"] != "n" {
			t.Errorf("%q: %s", contentType, got.raw)
		}
	}
}

// Contract, section 4: a body at most 64 KiB (413 BODY_TOO_LARGE), whether its length is told or not.
func TestBodyMayHaveExactly64KiB(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	filled := func(size int) string { return `{"name":"n"` + strings.Repeat(" ", size-len(`{"name":"n"}`)) + `}` }
	for _, c := range []struct {
		size, code int
	}{{64 << 10, 200}, {64<<10 + 1, 413}, {1 << 20, 413}} {
		for _, method := range []string{http.MethodPost, http.MethodPut} {
			path := "/v1.0/accesskeys"
			if method == http.MethodPut {
				path += "/" + h.acme.key.ID.String()
			}
			got := h.send(request{method: method, path: path, body: filled(c.size), header: bearing(h.acme.adminJWT)})
			// In chunks, without a Content-Length.
			r, err := http.NewRequestWithContext(t.Context(), method, h.url+path, io.MultiReader(strings.NewReader(filled(c.size))))
			if err != nil {
				t.Fatal(err)
			}
			r.Header = bearing(h.acme.adminJWT)
			res, err := noRedirects().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if got.code != c.code || res.StatusCode != c.code {
				t.Errorf("%s of %d bytes gave %d, in chunks %d, want %d", method, c.size, got.code, res.StatusCode, c.code)
			}
			if c.code == 413 {
				got.refuses(413, "BODY_TOO_LARGE")
			}
			// What may be left of the body is not read: it must not pass for the next request.
			if refused := c.code == 413; got.closes != refused || res.Close != refused {
				t.Errorf("%s of %d bytes: the connection is closed: %t, in chunks %t, want %t", method, c.size, got.closes, res.Close, refused)
			}
		}
	}
}

// A body that is compressed is no JSON, and what it holds can be told from no error: its coding is named instead.
func TestEncodedBodyIsRefusedByName(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	key := "/v1.0/accesskeys/" + h.acme.key.ID.String()
	for coding, refused := range map[string]bool{"gzip": true, "br": true, "GZIP": true, "identity, gzip": true, "x": true, "": false, "identity": false, " Identity ,": false} {
		for path, method := range map[string]string{"/v1.0/accesskeys": http.MethodPost, key: http.MethodPut, "/auth/login": http.MethodPost, "/auth/introspect": http.MethodPost} {
			header := http.Header{"Content-Encoding": {coding}}
			if path != "/auth/login" {
				header.Set("Authorization", "Bearer "+h.acme.adminJWT)
			}
			got := h.send(request{method: method, path: path, body: "{}", header: header})
			if !refused {
				if got.code == http.StatusUnsupportedMediaType {
					t.Errorf("%s %s with %q: %s", method, path, coding, got.raw)
				}
				continue
			}
			got.refuses(http.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE")
			if got.header.Get("Accept-Encoding") != "identity" {
				t.Errorf("%s %s with %q: %v", method, path, coding, got.header)
			}
		}
		// Where there is no body to be read, there is no coding either.
		h.send(request{method: http.MethodGet, path: key, header: http.Header{"Content-Encoding": {coding}, "Authorization": {"Bearer " + h.acme.adminJWT}}}).wants(200)
	}
}

// Contract, section 4: PUT: "an absent field keeps its value; tm_update moves. The token and the expiry can't be changed. Unknown fields are
// ignored, so that a fetched key can be sent back"; 7: "PUT without a field: keeps it".
func TestPutChangesNameAndDetailAndNothingElse(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	key := h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"name":"n","detail":"d","expire":600}`).wants(200).json()
	token := key["token"].(string)
	delete(key, "token")
	path := "/v1.0/accesskeys/" + key["id"].(string)
	hash := func() string { return h.text(`SELECT token_sha256 FROM accesskeys WHERE id = $1`, key["id"]) }
	stored := hash()
	sentBack, err := json.Marshal(h.get(path, h.acme.adminJWT).wants(200).json())
	if err != nil {
		t.Fatal(err)
	}
	forged := `{"name":"forged","id":"` + absentID + `","customer_id":"` + h.globex.customer.ID.String() + `",
		"token":"vb_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","token_prefix":"vb_aaaaaaaa","token_hash":"00","token_sha256":"00","expire":1,
		"tm_expire":"2000-01-01T00:00:00.000000Z","tm_create":"2000-01-01T00:00:00.000000Z","tm_update":"2000-01-01T00:00:00.000000Z",
		"tm_delete":"2000-01-01T00:00:00.000000Z","tm_last_used":"2000-01-01T00:00:00.000000Z",
		"created_by":{"type":"agent","id":"` + absentID + `"}}`
	for _, c := range []struct{ body, name, detail string }{
		{`{}`, "n", "d"},
		{`{"name":"n2"}`, "n2", "d"},
		{`{"detail":"d2"}`, "n2", "d2"},
		{`{"name":null,"detail":"d3"}`, "n2", "d3"},
		{`{"name":"n4","detail":null}`, "n4", "d3"},
		{`{"name":""}`, "", "d3"},
		{`{"detail":""}`, "", ""},
		{string(sentBack), "n", "d"},
		{forged, "forged", "d"},
	} {
		before := parseTime(t, key["tm_update"])
		got := h.put(path, h.acme.token, c.body).wants(200).json()
		if moved := parseTime(t, got["tm_update"]); !moved.After(before) || moved.After(before.Add(time.Minute)) {
			t.Errorf("%s: tm_update was %s, is %s", c.body, before, moved)
		}
		key["name"], key["detail"], key["tm_update"] = c.name, c.detail, got["tm_update"]
		equalJSON(t, got, key)
		equalJSON(t, h.get(path, h.acme.adminJWT).wants(200).json(), key)
	}
	if hash() != stored {
		t.Error("PUT changed the stored hash")
	}
	h.get("/v1.0/me", token).wants(200)
	h.get("/v1.0/me", "vb_"+strings.Repeat("a", 32)).refuses(401, "INVALID_CREDENTIALS")
	// Null where it counts as absent has nothing to say of other keys.
	if other := h.get("/v1.0/accesskeys/"+h.globex.key.ID.String(), h.globex.token).wants(200).json(); other["name"] != h.globex.key.Name {
		t.Errorf("globex's key is now %v", other)
	}
}
