package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/servertest"
)

const (
	adminName     = "admin@chaos.example"
	adminPassword = "chaos-password"
	rootName      = "root@chaos.example"
	adminKey      = "vb_ChaosChaosChaosChaosChaosChaosCh"

	// callTimeout is longer than any instance is stopped: what it was sent meanwhile it answers when it goes on, and that
	// answer counts.
	callTimeout = 20 * time.Second
)

// builds are the programs of a test run, each built once.
type builds struct {
	dir string
	all sync.Map
}

func newBuilds(t testing.TB) *builds { return &builds{dir: t.TempDir()} }

// server is the path of a build: without one of removals ("" is none), and with a wall clock that is an hour ahead.
func (b *builds) server(t testing.TB, without string, skewed bool) string {
	t.Helper()
	path := filepath.Join(b.dir, fmt.Sprintf("server-%s-%t", without, skewed))
	ctx := context.WithoutCancel(t.Context()) // others wait for the same
	once, _ := b.all.LoadOrStore(path, sync.OnceValue(func() error { return build(ctx, b.dir, path, without, skewed) }))
	servertest.OK(t, once.(func() error)())
	return path
}

func build(ctx context.Context, dir, path, without string, skewed bool) (err error) {
	edits, known := removals[without]
	if without != "" && !known {
		return fmt.Errorf("nobody knows how to build a server %s", without)
	}
	var others map[string]string
	if skewed {
		if others, err = skewedClock(ctx, dir); err != nil {
			return err
		}
	}
	overlay, err := servertest.Overlay(root, dir, edits, others)
	if err != nil {
		return err
	}
	return servertest.Build(ctx, path, overlay)
}

// fleet is some instances on one cluster.
type fleet struct {
	t         testing.TB
	cluster   *cluster
	instances []*instance
	lease     time.Duration
	usual     flow         // what proxies do where nothing is wrong
	epoch     time.Time    // every instant is measured from here, on this process's monotonic clock
	broken    atomic.Int64 // as instance.fault, for what all instances share
	cycles    atomic.Int64 // faults that were made
	client    *http.Client
	root      string // a credential that may delete customers

	mu     sync.Mutex
	events []string // what was done to whom, when
}

// instance is one server process, with a proxy to each database.
type instance struct {
	name    string
	fleet   *fleet
	binary  string
	env     []string
	proxies []*proxy
	logPath string
	addr    string
	program *servertest.Program
	// fault is odd while something is done to the instance, and changes with it.
	fault atomic.Int64
	// out is odd from the beginning of a fault to its end; fault stays odd until the instance serves again.
	out atomic.Int64
	// acceptedOut counts what it was sent and accepted while it was out: without, a scenario proves little.
	acceptedOut atomic.Int64
}

// newFleet starts instances, one for each binary. The options are those of the first one's sessions.
func newFleet(t testing.TB, g *cluster, lease time.Duration, options string, binaries ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, cluster: g, lease: lease, epoch: time.Now()}
	f.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1024, DisableCompression: true}}
	t.Cleanup(f.client.CloseIdleConnections)
	logs := t.TempDir()
	var starting sync.WaitGroup
	errs := make([]error, len(binaries))
	for i, binary := range binaries {
		r := &instance{name: string(rune('a' + i)), fleet: f, binary: binary, addr: servertest.Must(servertest.FreeAddr())(t)}
		for _, direct := range g.direct {
			network, address := endpoint(t, direct)
			r.proxies = append(r.proxies, newProxy(t, network, address))
		}
		if g.moves { // one address, which leads to the primary until it is moved
			r.proxies = r.proxies[:1]
		}
		r.logPath = filepath.Join(logs, r.name+".log")
		if i > 0 {
			options = ""
		}
		r.env = append(os.Environ(), "DATABASE_URL="+g.through(t, r.proxies, options), "LISTEN_ADDR="+r.addr,
			"JWT_SECRET="+strings.Repeat("chaos-secret", 4), "CACHE_LEASE="+lease.String(), "RATE_LIMIT_AUTH_RPS=0",
			"LOG_FORMAT=json", "LOG_LEVEL=info",
			"BOOTSTRAP_CUSTOMER=Chaos", "BOOTSTRAP_USERNAME="+adminName, "BOOTSTRAP_PASSWORD="+adminPassword, "BOOTSTRAP_ACCESSKEY="+adminKey)
		f.instances = append(f.instances, r)
		t.Cleanup(r.kill)
		starting.Go(func() { errs[i] = r.start() })
	}
	starting.Wait()
	servertest.OK(t, errs...)
	f.makeRoot()
	t.Cleanup(f.keepLogs)
	return f
}

// start runs the server until it answers.
func (r *instance) start() (err error) {
	cmd := exec.Command(r.binary, "serve")
	cmd.Env = r.env
	if r.program, err = servertest.Run("instance "+r.name, r.logPath, cmd); err != nil {
		return err
	}
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if r.call(context.Background(), http.MethodGet, "/readyz", "", "").status == http.StatusOK {
			return nil
		}
		if time.Now().After(deadline) || !r.program.Running() {
			return fmt.Errorf("instance %s is not ready after 15 s, or has ended; its log:\n%s", r.name, r.program.Tail())
		}
	}
}

// kill ends the process at once, stopped or not.
func (r *instance) kill() {
	if r.program != nil {
		r.program.Kill()
	}
}

// makeRoot makes an agent that may delete customers, which only the command line can, and logs it in.
func (f *fleet) makeRoot() {
	f.t.Helper()
	first := f.instances[0]
	var own, login made
	servertest.OK(f.t, first.call(f.t.Context(), http.MethodGet, "/v1.0/customer", adminKey, "").into(&own))
	cmd := exec.CommandContext(f.t.Context(), first.binary, "agent", "create", "--customer", own.ID, "--username", rootName, "--permission", "superadmin")
	cmd.Env = first.env
	cmd.Stdin = strings.NewReader(adminPassword + "\n")
	if output, err := cmd.CombinedOutput(); err != nil {
		f.t.Fatalf("making a superadmin: %v\n%s", err, output)
	}
	a := first.call(f.t.Context(), http.MethodPost, "/auth/login", "", `{"username":"`+rootName+`","password":"`+adminPassword+`"}`)
	servertest.OK(f.t, a.into(&login))
	f.root = login.Token
}

func (f *fleet) now() time.Duration { return time.Since(f.epoch) }

// note keeps what was done, to explain a violation.
func (f *fleet) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, fmt.Sprintf("%9.3f  %s  ", f.now().Seconds(), time.Now().UTC().Format("15:04:05.000"))+fmt.Sprintf(format, args...))
}

// watchLocks notes which sessions keep others waiting for long.
func (f *fleet) watchLocks(ctx context.Context) {
	for pause(ctx, 500*time.Millisecond) {
		held, err := f.cluster.query(f.t.Context(), 0, `
			SELECT format('process %s of the database, %s for %s, keeps %s others waiting: %s', h.pid, h.state, now() - h.state_change,
				(SELECT count(*) FROM pg_stat_activity w WHERE h.pid = ANY (pg_blocking_pids(w.pid))), left(regexp_replace(h.query, '\s+', ' ', 'g'), 80))
			FROM pg_stat_activity h
			WHERE now() - h.state_change > '0.5 s' AND h.wait_event_type IS DISTINCT FROM 'Lock'
				AND h.pid IN (SELECT unnest(pg_blocking_pids(pid)) FROM pg_stat_activity WHERE datname = current_database())`)
		if err != nil {
			continue // it is being restarted
		}
		for _, line := range held {
			f.note("%s", line)
		}
	}
}

// keepLogs saves the logs of a scenario that failed.
func (f *fleet) keepLogs() {
	if !f.t.Failed() {
		return
	}
	dir, err := os.MkdirTemp("", "chaos-logs-")
	if err != nil {
		f.t.Log(err)
		return
	}
	f.mu.Lock()
	events := strings.Join(f.events, "\n") + "\n"
	f.mu.Unlock()
	if err := errors.Join(os.CopyFS(dir, os.DirFS(filepath.Dir(f.instances[0].logPath))),
		os.WriteFile(filepath.Join(dir, "events.txt"), []byte(events), 0o600)); err != nil {
		f.t.Log(err)
	}
	f.t.Logf("the instances' logs and what was done to them: %s", dir)
}

// answer is what came of a request.
type answer struct {
	sent, arrived time.Duration // taken before the first byte was sent and after the header had come
	status        int           // 0 where there was no answer
	id            string        // X-Request-Id
	body          []byte
	err           error
}

// into decodes the body of a 200; anything else is an error.
func (a answer) into(v any) error {
	if a.err != nil {
		return a.err
	}
	if a.status != http.StatusOK {
		return fmt.Errorf("status %d: %s", a.status, a.body)
	}
	return json.Unmarshal(a.body, v)
}

// call sends a request to the instance.
func (r *instance) call(ctx context.Context, method, path, bearer, body string) (a answer) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+r.addr+path, strings.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	if bearer != "" {
		request.Header.Set("Authorization", "Bearer "+bearer)
	}
	a.sent = r.fleet.now()
	response, err := r.fleet.client.Do(request)
	a.arrived = r.fleet.now()
	if err != nil {
		a.err = err
		return a
	}
	defer response.Body.Close()
	a.status, a.id = response.StatusCode, response.Header.Get("X-Request-Id")
	a.body, a.err = io.ReadAll(response.Body)
	return a
}

// answered sends a request again until it is answered by something else than a 503: an instance that the machine kept from running has no
// lease for a moment.
func (r *instance) answered(method, path, bearer, body string) (a answer) {
	servertest.Eventually(r.fleet.t, "instance "+r.name+" answers a "+method, func() bool {
		a = r.call(r.fleet.t.Context(), method, path, bearer, body)
		return a.status != 0 && a.status != http.StatusServiceUnavailable
	})
	return a
}

// calm is a number that stays the same for as long as nothing is done to the instance or to what it stands on, and whether
// that is so now.
func (r *instance) calm() (int64, bool) {
	own, all := r.fault.Load(), r.fleet.broken.Load()
	return own<<32 | all, own%2 == 0 && all%2 == 0
}

// inject begins a fault.
func (r *instance) inject(format string, args ...any) {
	r.fault.Add(1)
	r.out.Add(1)
	r.fleet.note("instance "+r.name+": "+format, args...)
}

// recover says that what was done is about to be undone.
func (r *instance) recover() {
	r.out.Add(1)
	r.fleet.note("instance %s: it is being put right", r.name)
}

// settle ends a fault, once the instance serves again.
func (r *instance) settle(ctx context.Context) {
	r.awaitServing(ctx)
	r.fleet.cycles.Add(1)
	r.fault.Add(1)
	r.fleet.note("instance %s: it serves", r.name)
}

func (r *instance) awaitServing(ctx context.Context) {
	deadline := time.Now().Add(30 * time.Second)
	for r.call(ctx, http.MethodGet, "/v1.0/me", adminKey, "").status != http.StatusOK && ctx.Err() == nil {
		if time.Now().After(deadline) {
			r.fleet.t.Errorf("instance %s does not serve 30 s after it was put right", r.name)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (r *instance) signal(s syscall.Signal) {
	if err := r.program.Cmd.Process.Signal(s); err != nil {
		r.fleet.t.Errorf("instance %s: %v", r.name, err)
	}
}

// flow sets what the instance's proxies do.
func (r *instance) flow(f flow) {
	for _, p := range r.proxies {
		p.set(f)
	}
}
