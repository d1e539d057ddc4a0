package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/pgtest"
)

// `server health` says whether the server of the same settings is ready, by its exit code and in one line.
func TestHealthAsksTheServerOfTheSameSettings(t *testing.T) {
	t.Parallel()
	_, tls := newPair(t, 1).folder(t)
	for name, extra := range map[string]map[string]string{"HTTP": nil, "HTTPS": tls} {
		database := pgtest.Migrated(t)
		p := served(t, database, extra)
		addr := p.addr()
		env := map[string]string{"LISTEN_ADDR": addr, "HTTP_PROXY": "http://127.0.0.1:1", "DATABASE_URL": "nonsense"}
		maps.Copy(env, extra)
		p.eventually(name+": it is ready", func() bool {
			out, log, err := cli(t, env, "", "health")
			return err == nil && out == "ready\n" && log == ""
		})
		_, port, _ := strings.Cut(addr, ":")
		env["LISTEN_ADDR"] = ":" + port // everywhere, and so here
		prints(t, env, "ready\n", "health")
		ok(t, p.end())
		if out, _, err := cli(t, env, "", "health"); err == nil || out != "" || !strings.HasPrefix(err.Error(), "not ready: ") {
			t.Errorf("%s, when it has ended: %q, %v", name, out, err)
		}
	}
}

func TestHealthTellsWhyAServerIsNotReady(t *testing.T) {
	t.Parallel()
	for want, handler := range map[string]http.HandlerFunc{
		`503 Service Unavailable: "why"`: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"error":{"message":"why"}}`)
		},
		`404 Not Found: "no reason was given"`: func(w http.ResponseWriter, _ *http.Request) { http.Error(w, `<html>`, http.StatusNotFound) },
		`302 Found: "no reason was given"`:     func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ping", http.StatusFound) },
	} {
		other := httptest.NewServer(handler)
		t.Cleanup(other.Close)
		spawn(t, nil, "", "health", "--url", other.URL).fails(1, "not ready: "+want)
	}
	release := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(hanging.Close)
	t.Cleanup(func() { close(release) })
	began := time.Now()
	_, _, err := cli(t, nil, "", "health", "--url", hanging.URL)
	if took := time.Since(began); err == nil || took < healthTimeout || took > patience {
		t.Errorf("a server that hangs: after %v %v", took, err)
	}
	for _, url := range []string{"", "127.0.0.1:8080", "ftp://x", "http://", "://"} {
		if p := spawn(t, map[string]string{"LISTEN_ADDR": "127.0.0.1:0"}, "", "health", "--url", url); p.code() != 2 {
			t.Errorf("%q: %s", url, p.stderr)
		}
	}
}

// The version is one line, which names the Go release; `make build` stamps it from git.
func TestVersionIsPrinted(t *testing.T) {
	t.Parallel()
	out, log, err := cli(t, nil, "", "version")
	if fields := strings.Fields(out); err != nil || log != "" || len(fields) != 6 || fields[0] != "accesskeys" || !strings.HasPrefix(fields[4], "go1.") {
		t.Errorf("%q, %q, %v", out, log, err)
	}
}
