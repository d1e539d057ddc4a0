package api_test

import (
	"encoding/base64"
	"net/url"
	"strings"
	"testing"

	"accesskeys/internal/store"
)

// manyKeys stores n keys of a customer's that share a tm_create.
func (h *harness) manyKeys(c store.Customer, n int, tmCreate string) {
	h.t.Helper()
	h.exec(`
		INSERT INTO accesskeys (id, customer_id, name, token_sha256, token_prefix, tm_create, tm_update, tm_expire)
		SELECT id, $1, 'of many', sha256(id::text::bytea), 'vb_00000000', $3, $3, now() + interval '1 day'
		FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, $2)) ids`, c.ID, n, tmCreate)
}

// pages reads a list to its end, and returns the sizes of the pages and the ids that they showed.
func (h *harness) pages(bearer, path string) (sizes []int, all []string) {
	h.t.Helper()
	for next := any(""); next != nil && len(sizes) < 1000; {
		var ids []string
		ids, next = h.get(path+"&page_token="+url.QueryEscape(next.(string)), bearer).keyIDs()
		sizes, all = append(sizes, len(ids)), append(all, ids...)
	}
	return sizes, all
}

// Contract, section 4: page_size 1-100, default 100; 0, negative or above 100 mean 100; not a number: 400 INVALID_REQUEST_PARAMETER.
func TestPageSizeIsBounded(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.manyKeys(h.acme.customer, 120, "2026-01-01 00:00:00Z")
	for query, want := range map[string]int{
		"": 100, "page_size=1": 1, "page_size=7": 7, "page_size=99": 99, "page_size=100": 100, "page_size=101": 100, "page_size=0": 100,
		"page_size=-1": 100, "page_size=-5": 100, "page_size=2147483648": 100, "page_size=007": 7, "page_token=": 100, "page_size=": 100,
		"page_size=5&unknown=x": 5, "PAGE_SIZE=5": 100,
	} {
		if ids, next := h.get("/v1.0/accesskeys?"+query, h.acme.adminJWT).keyIDs(); len(ids) != want || next == nil {
			t.Errorf("%q gave %d, want %d and more to come", query, len(ids), want)
		}
	}
	// More digits than the document's integer has: still a whole number, as -5 is.
	for _, huge := range []string{"9223372036854775808", "-9223372036854775809", "1" + strings.Repeat("0", 300)} {
		_, _, got, err := h.do(request{method: "GET", path: "/v1.0/accesskeys?page_size=" + huge, header: bearing(h.acme.adminJWT)})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(got.items()); n != 100 {
			t.Errorf("page_size=%.30s gave %d", huge, n)
		}
	}
	for _, wrong := range []string{
		"&page_size=", "abc", "1.5", "1e2", "0x10", "%2B5", "+5", "5+", "--5", "-", "5;", "5%00", "%D9%A5", "null", "1,0", "5&page_size=5", "1_0",
	} {
		for _, path := range []string{"/v1.0/accesskeys", "/v1.0/customers"} {
			got := h.get(path+"?page_size="+wrong, h.acme.adminJWT).refuses(400, "INVALID_REQUEST_PARAMETER")
			if !strings.Contains(wrong, ";") { // such a query can't be decoded at all
				refusedDetails(t, got, "INVALID_REQUEST_PARAMETER", "page_size")
			}
		}
	}
}

// Contract, section 4: a bare timestamp (RFC 3339, or VoIPBIN's 2026-06-17 06:06:14.948432) is accepted and means created before.
func TestTimestampAsPageTokenMeansCreatedBefore(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.exec(`DELETE FROM accesskeys`)
	h.manyKeys(h.acme.customer, 2, "2026-06-17 06:06:14.948431Z")
	h.manyKeys(h.acme.customer, 3, "2026-06-17 06:06:14.948432Z")
	h.manyKeys(h.acme.customer, 4, "2026-06-17 06:06:15Z")
	h.manyKeys(h.globex.customer, 5, "2026-06-17 06:06:14Z")
	for token, want := range map[string]int{
		"2026-06-17T06:06:14.948432Z":         2,
		"2026-06-17 06:06:14.948432":          2,
		"2026-06-17T08:06:14.948432+02:00":    2,
		"2026-06-17T06:06:14.948432-00:00":    2,
		"2026-06-17T06:06:14.948433Z":         5,
		"2026-06-17T06:06:14.948432001Z":      5, // before it, if only by a nanosecond
		"2026-06-17T06:06:14.948431999Z":      2,
		"2026-06-17 06:06:14.948431":          0,
		"2026-06-17 06:06:14.9":               0,
		"2026-06-17 06:06:15":                 5,
		"2026-06-17T06:06:15Z":                5,
		"2026-06-17T06:06:16Z":                9,
		"0001-01-01T00:00:00Z":                0,
		"9999-01-01T00:00:00.000000Z":         9,
		"9999-12-31T23:59:59Z":                9,
		"2026-06-17T06:06:14.94843200000000Z": 2,
		"2026-06-17t06:06:14.948432z":         2, // RFC 3339, section 5.6
		"2026-06-17T08:06:14.948432 02:00":    2, // the "+" was not escaped
		"2026-06-17t08:06:15 02:00":           5,
	} {
		ids, next := h.get("/v1.0/accesskeys?page_token="+url.QueryEscape(token), h.acme.adminJWT).keyIDs()
		if len(ids) != want || next != nil {
			t.Errorf("before %s there are %d, want %d; %v", token, len(ids), want, next)
		}
	}
}

// Contract, section 4: page_token: "anything else: 400 INVALID_REQUEST_PARAMETER"; 7: "garbage page_token: 400".
func TestGarbageAsPageTokenIsRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.manyKeys(h.acme.customer, 2, "2026-01-01 00:00:00Z")
	good := h.get("/v1.0/accesskeys?page_size=1", h.acme.adminJWT).wants(200).json()["next_page_token"].(string)
	h.get("/v1.0/accesskeys?page_token="+good, h.acme.adminJWT).wants(200)
	raw, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	far := append([]byte{0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, raw[8:]...)
	past := append([]byte{0x80, 0, 0, 0, 0, 0, 0, 0}, raw[8:]...)
	for _, garbage := range []string{
		"x", "null", "0", "1", "undefined", "[object Object]", " ", "\x00", "\xff", "😀", good + "=", good + "\n", "\n" + good, good[:8] + "\r\n" + good[8:],
		good + " ", good[1:], good[:31], good + good, good + "A", "~" + good[1:], base64.RawURLEncoding.EncodeToString(raw[:23]),
		base64.RawURLEncoding.EncodeToString(far), base64.RawURLEncoding.EncodeToString(past),
		base64.StdEncoding.EncodeToString(append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe}, raw[8:]...)),
		"2026-06-17", "06:06:14", "2026-06-17T06:06:14", "2026-06-17T06:06Z", "2026-06-17 06:06:14Z", "2026-06-17 06:06", "20260617T060614Z",
		"2026-13-17T06:06:14Z", "2026-02-30T06:06:14Z", "2026-06-17T25:06:14Z", "2026-06-17T06:60:14Z", "2026-06-17T6:06:14Z",
		"2026-06-17 6:06:14", "2026-06-17  06:06:14", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-06-17T06:06:14,5Z",
		"2026-06-17T06:06:14+24:00", "2026-06-17T06:06:14 0200", "2026-06-17T06:06:14 02", "2026-06-17 06:06:14 02:00", "2026-06-17w06:06:14z",
		"Wed, 17 Jun 2026 06:06:14 GMT",
		"10000-01-01T00:00:00Z", "0000-01-01T00:00:00Z", "-2026-06-17T06:06:14Z", "1750140374", "now", "2026-06-17T06:06:14Z'--",
		strings.Repeat("A", 4096),
	} {
		for _, path := range []string{"/v1.0/accesskeys", "/v1.0/customers"} {
			refusedDetails(t, h.get(path+"?page_token="+url.QueryEscape(garbage), h.acme.adminJWT), "INVALID_REQUEST_PARAMETER", "page_token")
		}
	}
	refusedDetails(t, h.get("/v1.0/accesskeys?page_token="+good+"&page_token="+good, h.acme.adminJWT), "INVALID_REQUEST_PARAMETER", "page_token")
	refusedDetails(t, h.get("/v1.0/accesskeys?page_token=x&page_size=x", h.acme.adminJWT), "INVALID_REQUEST_PARAMETER", "page_size", "page_token")
	for _, query := range []string{"page_token=%zz", "a;b", "%"} {
		h.get("/v1.0/accesskeys?"+query, h.acme.adminJWT).refuses(400, "INVALID_REQUEST_PARAMETER")
	}
}

// Contract, section 4: newest first (tm_create descending, id descending), paging to the end gives every key ... exactly once ... however many
// keys share a tm_create; 1: "On the last page next_page_token is null"; 7: no empty page after the last. What comes and goes meanwhile, and
// every other list, is the store's.
func TestPagesSplitAListWithoutLossOrRepetition(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.exec(`DELETE FROM accesskeys WHERE customer_id = $1`, h.acme.customer.ID)
	for _, tm := range []string{"2026-01-01 00:00:00Z", "2026-01-02 00:00:00.000001Z", "2026-01-02 00:00:00Z"} {
		h.manyKeys(h.acme.customer, 21, tm)
		h.manyKeys(h.globex.customer, 7, tm)
	}
	// An expired key is still listed: it is not deleted.
	h.exec(`UPDATE accesskeys SET tm_expire = '2026-01-04 00:00:00Z' WHERE tm_create < '2026-01-02'`)
	h.exec(`UPDATE accesskeys SET tm_delete = now() WHERE id IN (SELECT DISTINCT ON (tm_create) id FROM accesskeys WHERE customer_id = $1)`,
		h.acme.customer.ID)
	h.exec(`INSERT INTO customers (id, name, tm_create) SELECT gen_random_uuid(), 'c', '2026-01-01Z' FROM generate_series(1, 23)`)
	const ids = `SELECT string_agg(id::text, ',' ORDER BY tm_create DESC, id DESC) FROM `
	keys := strings.Split(h.text(ids+`accesskeys WHERE customer_id = $1 AND tm_delete > now()`, h.acme.customer.ID), ",")
	customers := strings.Split(h.text(ids+`customers`), ",")
	for path, list := range map[string]struct {
		bearer string
		want   []string
		sizes  []int
	}{
		"accesskeys?page_size=100": {h.acme.adminJWT, keys, []int{60}},
		"accesskeys?page_size=60":  {h.acme.adminJWT, keys, []int{60}},     // exactly one page: the last one
		"accesskeys?page_size=30":  {h.acme.adminJWT, keys, []int{30, 30}}, // an exact multiple
		"accesskeys?page_size=59":  {h.acme.adminJWT, keys, []int{59, 1}},
		"accesskeys?page_size=7":   {h.acme.adminJWT, keys, []int{7, 7, 7, 7, 7, 7, 7, 7, 4}},
		"accesskeys?page_size=20":  {h.acme.adminJWT, keys, []int{20, 20, 20}},
		"customers?page_size=5":    {h.acme.superJWT, customers, []int{5, 5, 5, 5, 5}},
	} {
		sizes, all := h.pages(list.bearer, "/v1.0/"+path)
		equalJSON(t, []any{sizes, all}, []any{list.sizes, list.want})
	}
}

// A page token is no credential: with another customer's, a caller sees its own list from that place on. Nor does it need the rows that its
// page had.
func TestPageTokenOfAnotherCustomerShowsNothingOfIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.manyKeys(h.globex.customer, 5, "2026-01-02 00:00:00Z")
	h.manyKeys(h.acme.customer, 3, "2026-01-01 00:00:00Z")
	h.manyKeys(h.acme.customer, 4, "2026-01-03 00:00:00Z")
	first, token := h.get("/v1.0/accesskeys?page_size=2", h.globex.adminJWT).keyIDs()
	for _, id := range first {
		h.delete("/v1.0/accesskeys/"+id, h.globex.adminJWT).wants(200)
	}
	for bearer, c := range map[string]struct {
		customer store.Customer
		want     int
	}{h.acme.adminJWT: {h.acme.customer, 3}, h.globex.adminJWT: {h.globex.customer, 4}} {
		listed := h.get("/v1.0/accesskeys?page_token="+token.(string), bearer).items()
		for _, key := range listed {
			if key["customer_id"] != c.customer.ID.String() {
				t.Errorf("%s is shown %v", c.customer.Name, key)
			}
		}
		if len(listed) != c.want {
			t.Errorf("%s is shown %d, want the %d that are older", c.customer.Name, len(listed), c.want)
		}
	}
}
