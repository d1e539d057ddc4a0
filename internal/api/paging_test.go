package api_test

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

// Contract, section 4: Paging to the end gives every key ... exactly once ... however many keys share a tm_create; 1: "On the last page
// next_page_token is null"; 7: no empty page after the last.
func TestPagesSplitAListWithoutLossOrRepetition(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.exec(`DELETE FROM accesskeys WHERE customer_id = $1`, h.acme.customer.ID)
	for _, tm := range []string{"2026-01-01 00:00:00Z", "2026-01-02 00:00:00.000001Z", "2026-01-02 00:00:00Z"} {
		h.manyKeys(h.acme.customer, 20, tm)
		h.manyKeys(h.globex.customer, 7, tm)
	}
	var want []string
	for size, sizes := range map[string][]int{
		"100": {60},
		"60":  {60},     // exactly one page: the last one
		"30":  {30, 30}, // an exact multiple
		"59":  {59, 1},
		"7":   {7, 7, 7, 7, 7, 7, 7, 7, 4},
		"20":  {20, 20, 20},
	} {
		got, all := h.pages(h.acme.adminJWT, "/v1.0/accesskeys?page_size="+size, func() {})
		equalJSON(t, got, sizes)
		if !slices.IsSortedFunc(all, newestFirst) {
			t.Errorf("in pages of %s the order is lost", size)
		}
		ids := make([]string, 0, len(all))
		for _, p := range all {
			ids = append(ids, p.ID)
		}
		if want == nil {
			want = ids
		}
		if !slices.Equal(ids, want) || len(slices.Compact(slices.Sorted(slices.Values(ids)))) != 60 {
			t.Errorf("in pages of %s: %d keys, not the 60 that there are", size, len(ids))
		}
	}
}

// Contract, section 4: gives every key that existed throughout exactly once, whatever is created or deleted meanwhile. Between two pages,
// and at the same time from elsewhere, keys come and go at every tm_create.
func TestPagingIsUnharmedByWhatComesAndGoes(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	const staying = 45
	times := []string{"2026-01-01 00:00:00Z", "2026-01-02 00:00:00Z", "2026-01-03 00:00:00Z"}
	for _, tm := range times {
		h.manyKeys(h.acme.customer, staying/3, tm)
	}
	h.exec(`UPDATE accesskeys SET name = 'stays' WHERE customer_id = $1 AND name = 'of many'`, h.acme.customer.ID)
	for _, tm := range times {
		h.manyKeys(h.acme.customer, 25, tm)
	}
	stays := map[string]int{}
	for _, id := range strings.Split(h.text(`SELECT string_agg(id::text, ',') FROM accesskeys WHERE name = 'stays'`), ",") {
		stays[id] = 0
	}

	var others errgroup.Group
	done := make(chan struct{})
	for range 2 {
		others.Go(func() error {
			for {
				select {
				case <-done:
					return nil
				default:
				}
				_, _, made, err := h.do(request{method: "POST", path: "/v1.0/accesskeys", body: `{}`, header: bearing(h.acme.token)})
				if err != nil {
					return err
				}
				_, id, _ := strings.Cut(string(made.raw), `"id":"`)
				_, _, _, err = h.do(request{method: "DELETE", path: "/v1.0/accesskeys/" + id[:36], header: bearing(h.acme.token)})
				if err != nil {
					return err
				}
			}
		})
	}
	round := 0
	_, all := h.pages(h.acme.adminJWT, "/v1.0/accesskeys?page_size=4", func() {
		round++
		h.manyKeys(h.acme.customer, 2, times[round%3])
		// Sooner or later the one at the page's edge is among them; the test below makes sure of it.
		h.exec(`UPDATE accesskeys SET tm_delete = now() WHERE id IN (
			SELECT id FROM accesskeys WHERE name = 'of many' AND tm_delete > now() ORDER BY random() LIMIT 5)`)
	})
	close(done)
	if err := others.Wait(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range all {
		if seen[p.ID] {
			t.Errorf("key %s is shown twice", p.ID)
		}
		seen[p.ID] = true
		if _, stayed := stays[p.ID]; stayed {
			stays[p.ID]++
		}
	}
	if len(stays) != staying {
		t.Fatalf("%d keys stayed, want %d", len(stays), staying)
	}
	for id, times := range stays {
		if times != 1 {
			t.Errorf("key %s, which was there throughout, is shown %d times", id, times)
		}
	}
	if !slices.IsSortedFunc(all, newestFirst) {
		t.Error("over the pages the order is lost")
	}
}

// Contract, section 4: the row at which a page ended may be deleted; the next page goes on behind it all the same.
func TestNextPageNeedsNotTheKeyAtWhichTheLastOneEnded(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.manyKeys(h.acme.customer, 9, "2026-01-01 00:00:00Z")
	whole := places(t, h.get("/v1.0/accesskeys", h.acme.adminJWT).wants(200).json())
	first := h.get("/v1.0/accesskeys?page_size=5", h.acme.adminJWT).wants(200).json()
	for _, shown := range places(t, first) {
		h.delete("/v1.0/accesskeys/"+shown.ID, h.acme.adminJWT).wants(200)
	}
	rest := h.get("/v1.0/accesskeys?page_token="+first["next_page_token"].(string), h.acme.adminJWT).wants(200).json()
	equalJSON(t, places(t, rest), whole[5:])
}

// A page token is no credential: with another customer's, a caller sees its own list from that place on.
func TestPageTokenOfAnotherCustomerShowsNothingOfIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.manyKeys(h.globex.customer, 5, "2026-01-02 00:00:00Z")
	h.manyKeys(h.acme.customer, 3, "2026-01-01 00:00:00Z")
	h.manyKeys(h.acme.customer, 4, "2026-01-03 00:00:00Z")
	token := h.get("/v1.0/accesskeys?page_size=2", h.globex.adminJWT).wants(200).json()["next_page_token"].(string)
	page := h.get("/v1.0/accesskeys?page_token="+token, h.acme.adminJWT).wants(200)
	if found := places(t, page.json()); len(found) != 3 {
		t.Errorf("%d keys, want the 3 that are older", len(found))
	}
	if strings.Contains(string(page.raw), h.globex.customer.ID.String()) {
		t.Errorf("body %s", page.raw)
	}
	if found := places(t, h.get("/v1.0/accesskeys?page_token="+token, h.globex.adminJWT).wants(200).json()); len(found) != 4 {
		t.Errorf("globex itself is shown %d, want the 4 that are left", len(found))
	}
}
