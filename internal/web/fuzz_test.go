package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// timestampShape is what the contract takes for a timestamp: RFC 3339, also with a "+" that has become a space, or VoIPBIN's form.
var timestampShape = regexp.MustCompile(
	`\A(\d{4})-(\d\d)-(\d\d)(?:[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+ -])(\d\d):(\d\d))|[ ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?)\z`)

// shapedTimestamp reads one with nothing but arithmetic, rounded up to microseconds. exists is false where there
// is no such moment.
func shapedTimestamp(s string) (t time.Time, shaped, exists bool) {
	m := timestampShape.FindStringSubmatch(s)
	if m == nil {
		return time.Time{}, false, false
	}
	if m[4] == "" {
		copy(m[4:8], m[11:15])
	}
	n := func(i int) int {
		v, err := strconv.Atoi("0" + m[i])
		if err != nil {
			panic(err)
		}
		return v
	}
	fraction, err := strconv.Atoi((m[7] + "000000000")[:9])
	if err != nil {
		panic(err)
	}
	wall := time.Date(n(1), time.Month(n(2)), n(3), n(4), n(5), n(6), fraction, time.UTC)
	exists = wall.Format("2006-01-02 15:04:05") == strings.Join(m[1:4], "-")+" "+strings.Join(m[4:7], ":") && n(9) < 24 && n(10) < 60
	offset := time.Duration(n(9))*time.Hour + time.Duration(n(10))*time.Minute
	if m[8] == "-" {
		offset = -offset
	}
	t = wall.Add(-offset)
	if over := t.Nanosecond() % 1000; over != 0 {
		t = t.Add(time.Duration(1000 - over))
	}
	return t, true, exists && t.Year() >= 1 && t.Year() <= 9999
}

// Contract, section 4: page_token is next_page_token of the page before; a bare timestamp ... means 'created before'; anything else: 400.
// What is accepted is one or the other, in its one meaning, and every cursor survives the way out and in.
func FuzzPageToken(f *testing.F) {
	id := uuid.MustParse("5f1f8f7e-9b3d-4c60-8465-b69e9f28b6db")
	good := pageToken(Cursor{TmCreate: time.Date(2026, 4, 28, 1, 41, 40, 503790000, time.UTC), ID: id})
	for _, token := range []string{
		good, good + "=", good + "\n", good[1:], good[:len(good)-1] + "B", strings.Repeat("_", 32), strings.Repeat("A", 32), "", "x",
		"2026-06-17 06:06:14.948432", "2026-06-17T06:06:14Z", "2026-06-17T06:06:14.948432123+09:00", "2026-06-17T06:06:14-23:59",
		"2026-02-30T00:00:00Z", "2024-02-29 23:59:59", "9999-12-31T23:59:59.9999999Z", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+00:01",
		"2026-06-17T6:06:14Z", "2026-06-17T06:06:14,5Z", "2026-06-17T06:06:14+24:00", "2026-06-17T06:06:14", "2026-06-17", "2026-06-17T24:00:00Z",
		"2026-06-17T06:06:60Z", "2026-06-17T06:06:14.Z", "2026-06-17 06:06:14Z", "2026-06-17t06:06:14z", " 2026-06-17 06:06:14", "2026-06-17  06:06:14", "2026-06-17  6:06:14.9",
		"2026-06-17 6:06:14", "2026-06-17T 6:06:14Z",
		"2026-06-17t06:06:14 02:00", "2026-06-17 06:06:14 02:00", "2026-06-17T06:06:14.5 23:59", "2026-06-17T06:06:14 0200",
		"2020-06-17t06:06:14 02:60", "2020-06-17T06:06:14+24:00", "2020-06-17T06:06:14-23:60",
	} {
		f.Add(token, int64(1777340500503790), id[:])
	}
	f.Add("", int64(-62135596800000000), make([]byte, 16)) // the first microsecond of year 1
	f.Add("", int64(253402300799999999), bytes.Repeat([]byte{255}, 16))
	f.Add("", int64(-1<<63), []byte{1})
	f.Add("", int64(1<<63-1), []byte{})
	f.Fuzz(func(t *testing.T, token string, micros int64, rawID []byte) {
		cursor := Cursor{TmCreate: time.UnixMicro(micros).UTC()}
		copy(cursor.ID[:], rawID)
		written := pageToken(cursor)
		got, ok := parsePageToken(written)
		if want := cursor.TmCreate.Year() >= 1 && cursor.TmCreate.Year() <= 9999; ok != want || ok && (!got.TmCreate.Equal(cursor.TmCreate) || got.ID != cursor.ID) {
			t.Fatalf("%v became %q and then %v, %t", cursor, written, got, ok)
		}
		got, ok = parsePageToken(token)
		moment, shaped, exists := shapedTimestamp(token)
		switch {
		case ok && !shaped && pageToken(got) != token:
			t.Fatalf("accepted %q as %v, which is written %q", token, got, pageToken(got))
		case ok && shaped && (!exists || got.ID != uuid.Nil || !got.TmCreate.Equal(moment)):
			t.Fatalf("accepted %q as %v, want %v, which exists: %t", token, got, moment, exists)
		case !ok && exists:
			t.Fatalf("refused %q, a timestamp", token)
		}
	})
}

// nobody is a Caller that no credential is known of.
type nobody struct{}

func (nobody) Account() any                           { return nil }
func (nobody) Recheck(*http.Request) error            { return nil }
func (nobody) LogAttrs(attrs []slog.Attr) []slog.Attr { return attrs }

// mostSeconds is a hundred years.
const mostSeconds = 100 * 365 * 86400

// jsonFacts is what encoding/json, which is another library than DecodeObject's, says of a text.
type jsonFacts struct {
	valid, repeats bool
	depth          int
	fields         map[string]any // nil where it is no object
}

func factsOf(body []byte) jsonFacts {
	facts := jsonFacts{valid: json.Valid(body)}
	if !facts.valid {
		return facts
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var value any
	if decoder.Decode(&value) != nil {
		return jsonFacts{}
	}
	facts.fields, _ = value.(map[string]any)
	// Again, token by token, for names that are repeated at whatever depth.
	decoder = json.NewDecoder(bytes.NewReader(body))
	type level struct {
		names  map[string]bool // nil in an array
		isName bool
	}
	var levels []level
	for {
		token, err := decoder.Token()
		if err != nil {
			return facts
		}
		inObject := len(levels) > 0 && levels[len(levels)-1].names != nil
		if name, isText := token.(string); inObject && levels[len(levels)-1].isName && isText {
			top := &levels[len(levels)-1]
			facts.repeats = facts.repeats || top.names[name]
			top.names[name], top.isName = true, false
			continue
		}
		switch token {
		case json.Delim('{'):
			levels = append(levels, level{map[string]bool{}, true})
			facts.depth = max(facts.depth, len(levels))
			continue
		case json.Delim('['):
			levels = append(levels, level{})
			facts.depth = max(facts.depth, len(levels))
			continue
		case json.Delim('}'), json.Delim(']'):
			levels = levels[:len(levels)-1]
		}
		if len(levels) > 0 {
			levels[len(levels)-1].isName = true
		}
	}
}

// Contract, section 4: An empty body is {}; "name at most 255 characters, detail at most 4096, both valid UTF-8 without NUL; a body at most
// 64 KiB"; "expire is a positive whole number". Pitfalls: "the last duplicate wins, names match in any case, invalid UTF-8 is replaced in
// silence, Decoder ignores a second value".
func FuzzDecodeBody(f *testing.F) {
	for _, body := range []string{
		"", " \t\r\n", "\u00a0", "\v", "{}", "null", "[]", `"x"`, "1", "{", "{}{}", "{} x", `{"name":"n","detail":"d","expire":3600}`,
		`{"name":"a","name":"b"}`, `{"name":"a","\u006eame":"b"}`, `{"Name":"a"}`, `{"name":null,"expire":null}`, "{\"name\":\"\xff\"}",
		`{"name":"\ud800"}`, `{"name":"\ud83d\ude00"}`, `{"name":"\u0000"}`, `{"name":1}`, `{"expire":"1"}`, `{"expire":1.0}`, `{"expire":1e3}`,
		`{"expire":-1}`, `{"expire":0}`, `{"expire":9223372036854775808}`, `{"expire":-0}`, `{"expire":3153600000}`, `{"expire":3153600001}`,
		`{"x":{"a":1,"a":2}}`, `{"x":[{"a":1},{"a":2}]}`, `{"name":"` + strings.Repeat("ü", 255) + `"}`, `{"name":"` + strings.Repeat("ü", 256) + `"}`,
		`{"x":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `}`, "\ufeff{}", "{\"name\":\"\ufffd\"}", `{"name":"\/\b\f\u2028"}`, "{\"a\u0000\":1}",
		`{"name":"a",}`, `{'name':'a'}`, `{"name":"a"}//`, "{\"name\":\"tab\there\"}",
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		facts := factsOf(body)
		empty := len(bytes.Trim(body, " \t\r\n")) == 0
		ev := &Event{Caller: nobody{}}
		ev.recorder.ResponseWriter = httptest.NewRecorder()
		ev.parent, ev.deadline = t.Context(), time.Now().Add(time.Hour)
		defer ev.end()
		o, err := DecodeObject(httptest.NewRequestWithContext(ev, http.MethodPost, "/", bytes.NewReader(body)))
		if err != nil {
			var p *Error
			if !errors.As(err, &p) || (p.Code == http.StatusRequestEntityTooLarge) != (len(body) > MaxBody) || p.Code/100 != 4 {
				t.Fatalf("refused with %v", err)
			}
			surrogate := bytes.Contains(bytes.ToLower(body), []byte(`\ud`)) // of which the pairs are good
			if p.Code == http.StatusBadRequest && (empty || facts.fields != nil && !facts.repeats && utf8.Valid(body) && !surrogate && facts.depth < 9000) {
				t.Fatalf("refused %q", body)
			}
			return
		}
		if len(body) > MaxBody || !utf8.Valid(body) || !empty && (facts.fields == nil || facts.repeats) {
			t.Fatalf("accepted %q", body)
		}
		for field, most := range map[string]int{"name": 255, "detail": 4096} {
			got := o.Text(field, most)
			ok := o.Err() == nil
			o.details = nil
			value, there := facts.fields[field]
			want, isText := value.(string)
			fits := isText && !strings.Contains(want, "\x00") && len([]rune(want)) <= most
			switch {
			case !there || value == nil:
				if got != nil || !ok {
					t.Fatalf("%s of %q is %v, %t, want absent", field, body, got, ok)
				}
			case ok && (got == nil || *got != want || !fits || !utf8.ValidString(*got)), !ok && fits:
				t.Fatalf("%s of %q is %v, %t, want %q, %t", field, body, got, ok, want, fits)
			}
		}
		got := o.WholeNumber("expire", 1, mostSeconds, 77)
		ok := o.Err() == nil
		value, there := facts.fields["expire"]
		number, isNumber := value.(json.Number)
		want, numberErr := number.Int64()
		switch {
		case !there || value == nil:
			if got != 77 || !ok {
				t.Fatalf("expire of %q is %d, %t, want the default", body, got, ok)
			}
		case ok && (!isNumber || numberErr != nil || got != want || got < 1 || got > mostSeconds),
			!ok && isNumber && numberErr == nil && want >= 1 && want <= mostSeconds:
			t.Fatalf("expire of %q is %d, %t, want %v", body, got, ok, value)
		}
	})
}
