//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/servertest"
)

// balancer is one of the two in examples/instances, and how servers are run behind it.
type balancer struct {
	name            string
	inheritedSocket bool     // the servers' sockets stay open while they restart
	env             []string // of the servers
	run             func(t *testing.T, servers []*server, replacements ...string) balancing
}

// balancing is a balancer at work.
type balancing struct {
	addr string
	logs []string // the paths of what it writes
}

func behindHAProxy() balancer { return balancer{"haproxy", false, []string{trusted}, runHAProxy} }

func behindNginx() balancer {
	return balancer{"nginx", true, []string{trusted, "SHUTDOWN_DELAY=0"}, runNginx}
}

// newInstance is a server that may have its socket from its service manager, as systemd's socket units do it.
func newInstance(t testing.TB, database string, inheritedSocket bool, env ...string) *server {
	t.Helper()
	s := prepared(t, binary, database, env...)
	if inheritedSocket {
		listener := servertest.Must(net.Listen("tcp", s.addr))(t)
		defer listener.Close()
		s.socket = servertest.Must(listener.(*net.TCPListener).File())(t)
		t.Cleanup(func() { _ = s.socket.Close() })
	}
	s.begin()
	return s
}

// addressed is an example with its servers' addresses replaced by those of ours, and what else is to be.
func addressed(t testing.TB, path string, servers []*server, replacements ...string) string {
	t.Helper()
	for i, s := range servers {
		replacements = append(replacements, fmt.Sprintf("127.0.0.1:%d", 8081+i), s.addr)
	}
	return example(t, path, replacements...)
}

func runHAProxy(t *testing.T, servers []*server, replacements ...string) balancing {
	t.Helper()
	addr, file := freeAddr(t), filepath.Join(folder(t), "haproxy.cfg")
	replacements = append(replacements, "bind :80\n", "bind "+addr+"\n")
	if os.Geteuid() != 0 { // only root can change
		replacements = append(replacements, "    user haproxy\n    group haproxy\n", "")
	}
	write(t, file, addressed(t, "instances/haproxy.cfg", servers, replacements...))
	p := servertest.Start(t, "haproxy", exec.Command("haproxy", "-db", "-f", file))
	awaitListening(t, p, addr)
	return balancing{addr, []string{p.Log}}
}

func runNginx(t *testing.T, servers []*server, replacements ...string) balancing {
	t.Helper()
	addr, dir := freeAddr(t), folder(t)
	write(t, filepath.Join(dir, "accesskeys.conf"), addressed(t, "instances/nginx.conf", servers,
		append(replacements, "listen 80;", "listen "+addr+";", "/var/log/nginx/", dir+"/")...))
	p := servertest.Start(t, "nginx", nginxAround(t, dir, "stderr", "worker_processes auto;"))
	awaitListening(t, p, addr)
	return balancing{addr, []string{p.Log, filepath.Join(dir, "accesskeys.log"), filepath.Join(dir, "accesskeys.error.log")}}
}

const (
	rounds        = 20 // of restarts of each server, one after the other
	loadClients   = 60
	loadPerSecond = 250
)

// roll restarts each server in turn, the next one once the balancer has used the last one again, until something has failed or
// the rounds are over, and returns how many it was.
func roll(t *testing.T, servers []*server, l *load) (restarts int) {
	t.Helper()
	inUse := func(r *server) { // it has had a request of the load's, which comes by the balancer only
		t.Helper()
		servertest.Eventually(t, "the balancer uses the server", func() bool {
			return strings.Contains(r.call(http.MethodGet, "/metrics", "", "").body, `route="/v1.0/me"`) || l.soFar().failed > 0
		})
	}
	for _, r := range servers {
		inUse(r)
	}
	for range rounds {
		for _, r := range servers {
			if l.soFar().failed > 0 {
				return restarts
			}
			servertest.OK(t, r.Stop())
			r.begin()
			inUse(r)
			restarts++
		}
	}
	return restarts
}

// A rolling restart fails no request. Nothing sends one twice, neither the balancer nor the client. What it takes is taken away in two
// further cases, which fail some.
func TestRollingRestartFailsNoRequest(t *testing.T) {
	t.Parallel()
	atOnce, refusing := behindHAProxy(), behindNginx()
	atOnce.env = append(atOnce.env, "SHUTDOWN_DELAY=0")
	refusing.inheritedSocket = false
	for name, test := range map[string]struct {
		balancer
		with  string
		fails string // what those that fail are told
	}{
		"haproxy":                              {behindHAProxy(), "", ""},
		"haproxy without SHUTDOWN_DELAY":       {atOnce, ", SHUTDOWN_DELAY=0", "status 503"},
		"nginx":                                {behindNginx(), ", sockets handed over", ""},
		"nginx without sockets that stay open": {refusing, ", sockets not handed over", "status 502"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers := newInstances(t, newDatabase(t), test.balancer)
			l := startLoad(t, test.run(t, servers).addr, loadClients, loadPerSecond)
			restarts := roll(t, servers, l)
			f := l.end()
			if test.fails == "" {
				f.mustHaveServedAll(t, servers[0])
			} else if f.failed == 0 || !strings.Contains(f.failures[0], test.fails) {
				t.Errorf("%d restarts, %d of %d requests failed: %q", restarts, f.failed, f.requests, f.failures)
			}
			counted(t, "rolling restarts of three instances under load", version(t, test.name, "-v")+test.with,
				"%d restarts, %d requests, %d of them POSTs: %d failed; slowest answer %v",
				restarts, f.requests, f.posts, f.failed, f.slowest.Round(time.Millisecond))
		})
	}
}

func newInstances(t testing.TB, database string, b balancer) []*server {
	t.Helper()
	one := func() *server { return newInstance(t, database, b.inheritedSocket, b.env...) }
	return []*server{one(), one(), one()}
}

// Behind a balancer the address in X-Forwarded-For is believed; so it must not be the client's own word.
func TestBalancersTellWhoTheClientIs(t *testing.T) {
	t.Parallel()
	for _, b := range []balancer{behindHAProxy(), behindNginx()} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			const forged = "203.0.113.9"
			servers := newInstances(t, newDatabase(t), b)
			told := func(base string) string { // what the servers log as the client's address
				t.Helper()
				a := call(t.Context(), client(t), http.MethodGet, base+"/v1.0/me", "",
					"Authorization", "Bearer "+adminKey, "X-Forwarded-For", forged)
				a.into(t, &struct{}{})
				var line struct {
					RequestID string `json:"request_id"`
					ClientIP  string `json:"client_ip"`
				}
				servertest.Eventually(t, "the request is in a server's log", func() bool {
					for _, s := range servers {
						content, _ := os.ReadFile(s.Log)
						for text := range strings.Lines(string(content)) {
							if json.Unmarshal([]byte(text), &line) == nil && line.RequestID == a.header.Get("X-Request-Id") {
								return true
							}
						}
					}
					return false
				})
				return line.ClientIP
			}
			behind, without := told("http://"+b.run(t, servers).addr), told(servers[0].url(""))
			if behind != "127.0.0.1" || without != forged {
				t.Errorf("behind %s the client's address is %s; without, %s", b.name, behind, without)
			}
			counted(t, "a forged X-Forwarded-For", version(t, b.name, "-v"),
				"the servers take the client for %s; without the balancer for %s", behind, without)
		})
	}
}

// A balancer's log has each request, and of none the query string, whether it was answered or failed. The second case of each
// logs as one would without giving it a thought.
func TestBalancersLogNoCredential(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		balancer
		with   string
		change []string // in its configuration
		leaks  bool
	}{
		"haproxy":                 {behindHAProxy(), "", nil, false},
		"haproxy, option httplog": {behindHAProxy(), ", option httplog", []string{"%HM %HPO", "%r"}, true},
		"nginx":                   {behindNginx(), "", nil, false},
		"nginx, combined":         {behindNginx(), ", the combined format", []string{"accesskeys.log accesskeys;", "accesskeys.log;"}, true},
		"nginx, error_log":        {behindNginx(), ", the usual error_log", []string{"error.log emerg;", "error.log;"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers := []*server{newInstance(t, newDatabase(t), false, trusted)}
			at := test.run(t, append(servers, servers[0], servers[0]), test.change...)
			c, route := client(t), "http://"+at.addr+"/v1.0/me?accesskey="+adminKey
			call(t.Context(), c, http.MethodGet, route, "").into(t, &struct{}{})
			servers[0].Kill()
			a := call(t.Context(), c, http.MethodGet, route, "")
			switch {
			case test.name == "nginx" && a.status == http.StatusBadGateway:
			case a.status == http.StatusServiceUnavailable && a.header.Get("Retry-After") == "1" &&
				strings.Contains(a.body, `"reason":"SERVICE_UNAVAILABLE"`):
			default:
				t.Errorf("without a server: %+v", a)
			}
			log := ""
			servertest.Eventually(t, "both requests are in the log", func() bool {
				log = ""
				for _, path := range at.logs {
					content, _ := os.ReadFile(path)
					log += string(content)
				}
				return strings.Count(log, "GET /v1.0/me") >= 2
			})
			if got := strings.Contains(log, adminKey); got != test.leaks {
				t.Errorf("the key is in the log: %t, want %t\n%s", got, test.leaks, log)
			}
			counted(t, "credentials in a balancer's log", version(t, test.name, "-v")+test.with,
				"%d lines of two requests, of which one failed: the key is there %d times", strings.Count(log, "GET /v1.0/me"),
				strings.Count(log, adminKey))
		})
	}
}
