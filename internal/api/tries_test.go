package api_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"accesskeys/internal/api"
	"accesskeys/internal/store"
)

// behindProxy has the server believe the tests' X-Forwarded-For.
func behindProxy(c *api.Config) {
	c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
}

// loginFrom is a login from an address.
func loginFrom(address, username, password string) request {
	return request{
		method: http.MethodPost, path: "/auth/login", body: map[string]string{"username": username, "password": password},
		header: http.Header{"X-Forwarded-For": {address}},
	}
}

// attack tries a username with wrong passwords from as many networks, a few at once, and returns how often each status came.
func (h *harness) attack(username string, times int) map[int]int {
	h.t.Helper()
	var group errgroup.Group
	group.SetLimit(4)
	codes := make([]int, times)
	for n := range times {
		group.Go(func() error {
			_, _, got, err := h.do(loginFrom(fmt.Sprintf("198.18.%d.1", n), username, "a guess"))
			codes[n] = got.code
			return err
		})
	}
	if err := group.Wait(); err != nil {
		h.t.Fatal(err)
	}
	counts := map[int]int{}
	for _, code := range codes {
		counts[code]++
	}
	return counts
}

// limitedBy fails the test unless this is the contract's 429 with a wait of up to a minute.
func (r response) limitedBy(whose string) response {
	r.t.Helper()
	r.refuses(http.StatusTooManyRequests, "RATE_LIMIT_EXCEEDED")
	e := r.json()["error"].(map[string]any)
	equalJSON(r.t, e["details"], []any{map[string]any{"limited_by": whose}})
	if e["status"] != "RESOURCE_EXHAUSTED" {
		r.t.Errorf("status %v", e["status"])
	}
	if seconds, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 60 {
		r.t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
	}
	return r
}

// Promised: "tries are also limited per username, known or not, from the 21st in a minute", wherever they come from; the answer is one.
func TestTriesOfAUsernameAreLimitedWhoeverHasIt(t *testing.T) {
	t.Parallel()
	h := newHarness(t, behindProxy)
	if _, err := h.store.DeleteAgent(t.Context(), store.Operator(), h.acme.plain); err != nil {
		t.Fatal(err)
	}
	id := regexp.MustCompile(`req_[A-Z2-7]{26}`)
	var answers []string
	for what, username := range map[string]string{"known": h.acme.admin.Username, "unknown": "nobody@acme.example", "deleted": h.acme.plain.Username} {
		if codes := h.attack(username, 25); codes[401] != 20 || codes[429] != 5 {
			t.Errorf("%s: %v", what, codes)
		}
		for _, password := range []string{"a guess", tenantPassword} {
			got := h.send(loginFrom("203.0.113.1", " "+username, password)).limitedBy("username")
			answers = append(answers, id.ReplaceAllString(string(got.raw), ""))
		}
	}
	if len(slices.Compact(answers)) != 1 {
		t.Errorf("the answers differ: %s", answers)
	}
	h.login(h.globex.admin.Username).wants(200) // nobody else is hindered
	if n := h.series()[`accesskeys_login_refusals_total{reason="RATE_LIMIT_EXCEEDED"}`]; n != 3*(5+2) {
		t.Errorf("%v logins are counted as limited", n)
	}
}

// Whether a username that is limited exists can't be measured either.
//
// It measures time, so it runs before the tests that are parallel.
func TestLimitedTriesAllTakeTheSameTime(t *testing.T) {
	h := newHarness(t, behindProxy)
	names := map[string]string{"known": h.acme.admin.Username, "unknown": "nobody@acme.example"}
	for _, name := range names {
		h.attack(name, 20)
	}
	const fewest, most, bound = 4, 20, 30 * time.Millisecond
	quickest := map[string]time.Duration{}
	for round := 1; ; round++ {
		for what, username := range names {
			started := time.Now()
			h.send(loginFrom("203.0.113.1", username, "a guess")).limitedBy("username")
			if took := time.Since(started); quickest[what] == 0 || took < quickest[what] {
				quickest[what] = took
			}
		}
		difference := (quickest["known"] - quickest["unknown"]).Abs()
		if quickest["known"] < 250*time.Millisecond || quickest["unknown"] < 250*time.Millisecond {
			t.Fatalf("quicker than a login that is refused: %v", quickest)
		}
		if round >= fewest && difference <= bound {
			return
		}
		if round == most {
			t.Fatalf("they are told apart: %v", quickest)
		}
	}
}
