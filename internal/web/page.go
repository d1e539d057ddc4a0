package web

import (
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

const maxPageSize = 100

// Cursor is a place in a list that is ordered by tm_create, then id, both descending.
type Cursor struct {
	TmCreate time.Time
	ID       uuid.UUID
}

// start is the cursor that every item comes after: the time that means "not yet" in a tm_delete.
var start = Cursor{TmCreate: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), ID: uuid.Max}

// Page is which part of a list is asked for: up to Size items that come after a cursor.
type Page struct {
	After Cursor
	Size  int
}

// Limit is how many rows to read: the one beyond the page tells that there is more.
func (p Page) Limit() int { return p.Size + 1 }

// DecodePage reads page_size and page_token (contract, section 4), and takes the memory of such a page.
func DecodePage(r *http.Request) (Page, error) {
	p := Page{After: start, Size: maxPageSize}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return Page{}, BadRequest(ReasonInvalidRequestParameter, "The query can't be decoded.")
	}
	var details []Detail
	if sizes := query["page_size"]; len(sizes) > 1 || len(sizes) == 1 && sizes[0] != "" {
		size, ok := parsePageSize(sizes)
		if !ok {
			details = append(details, Detail{Field: "page_size", Message: "must be a whole number"})
		}
		p.Size = size
	}
	if tokens := query["page_token"]; len(tokens) > 1 || len(tokens) == 1 && tokens[0] != "" {
		after, ok := parsePageToken(tokens[0])
		if !ok || len(tokens) > 1 {
			details = append(details, Detail{
				Field: "page_token", Message: "must be the next_page_token of a page before, or a timestamp",
			})
		}
		p.After = after
	}
	if details != nil {
		return Page{}, BadRequest(ReasonInvalidRequestParameter, "The query has parameters that are not valid.", details...)
	}
	return p, Take(r, int64(p.Limit())*itemMemory)
}

// parsePageSize takes any whole number, however large; outside of 1 to 100 it means 100.
func parsePageSize(values []string) (int, bool) {
	if len(values) != 1 {
		return 0, false
	}
	digits := strings.TrimPrefix(values[0], "-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	size, err := strconv.Atoi(values[0])
	if err != nil || size < 1 || size > maxPageSize {
		return maxPageSize, true
	}
	return size, true
}

// pageTokenLength is that of a token's bytes: tm_create in microseconds since 1970, then the id.
const pageTokenLength = 8 + 16

// pageToken writes the cursor after which the next page starts. It is no secret and needs no signature: it says only
// where in the caller's own list to go on.
func pageToken(c Cursor) string {
	raw := make([]byte, 0, pageTokenLength)
	raw = binary.BigEndian.AppendUint64(raw, uint64(c.TmCreate.UnixMicro()))
	raw = append(raw, c.ID[:]...)
	return base64.RawURLEncoding.EncodeToString(raw)
}

// parsePageToken reads what pageToken wrote, or a bare timestamp, which means "created before".
func parsePageToken(token string) (Cursor, bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err == nil && len(raw) == pageTokenLength {
		micros := int64(binary.BigEndian.Uint64(raw)) //nolint:gosec // pageToken wrote the same 64 bits of an int64; what is out of range is refused below
		c := Cursor{TmCreate: time.UnixMicro(micros).UTC(), ID: uuid.UUID(raw[8:])}
		// The decoder skips line breaks; a token has one spelling.
		return c, storable(c.TmCreate) && pageToken(c) == token
	}
	t, ok := parseTimestamp(token)
	// Rounded up to the database's microseconds: what is before t stays before it.
	t = t.Add(time.Microsecond - 1).Truncate(time.Microsecond)
	return Cursor{TmCreate: t}, ok && storable(t)
}

// timestampForm is what a page token may say, since time.Parse takes more than RFC 3339 does: hours of one digit, a comma before the
// fraction, offsets of 24 hours or 60 minutes.
var timestampForm = regexp.MustCompile(
	`\A\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)| \d\d:\d\d:\d\d(\.\d+)?)\z`)

// parseTimestamp reads RFC 3339, or VoIPBIN's form, which is UTC. Where the "+" of an offset was not escaped in the query it has become a
// space.
func parseTimestamp(s string) (time.Time, bool) {
	s = strings.ToUpper(s) // RFC 3339, section 5.6: T and Z may be in lower case
	if at := len(s) - len(" 00:00"); at >= len(time.DateTime) && s[at] == ' ' {
		s = s[:at] + "+" + s[at+1:]
	}
	if !timestampForm.MatchString(s) {
		return time.Time{}, false
	}
	layout := time.RFC3339 // fractional seconds are taken too
	if s[len(time.DateOnly)] == ' ' {
		layout = time.DateTime
	}
	t, err := time.Parse(layout, s)
	return t, err == nil
}

// storable reports whether Postgres can hold t, with room to spare.
func storable(t time.Time) bool {
	year := t.UTC().Year()
	return year >= 1 && year <= 9999
}

// Paged turns up to p.Limit() rows into a page's answer.
func Paged[Row interface{ Cursor() C }, C ~struct {
	TmCreate time.Time
	ID       uuid.UUID
}, Item any](rows []Row, p Page, item func(Row) Item) List[Item] {
	var l List[Item]
	if len(rows) > p.Size {
		rows = rows[:p.Size]
		next := pageToken(Cursor(rows[p.Size-1].Cursor()))
		l.NextPageToken = &next
	}
	l.Result = make([]Item, 0, len(rows))
	for _, row := range rows {
		l.Result = append(l.Result, item(row))
	}
	return l
}
