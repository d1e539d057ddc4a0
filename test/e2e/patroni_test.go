//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"accesskeys/internal/servertest"
)

// patroniCluster is the three machines of examples/patroni on three loopback addresses: an etcd, a Patroni and its Postgres
// on each.
type patroniCluster struct {
	t     testing.TB
	dir   string
	addrs [3]string
	nodes [3]*program // Patroni's
}

const superuserPassword = "e2ePassword"

func newPatroniCluster(t testing.TB) *patroniCluster {
	t.Helper()
	c := &patroniCluster{t: t, dir: folder(t), addrs: freeMachines(t)}
	for i := range c.nodes {
		servertest.OK(t, os.Mkdir(c.machine(i), 0o755))
		c.configure(i)
	}
	for i := range c.nodes {
		servertest.Start(t, c.name(i)+"-etcd", c.command(i, "etcd", "--config-file="+filepath.Join(c.machine(i), "etcd.yml")))
	}
	for i := range c.nodes {
		t.Cleanup(func() { c.kill(i) })
		c.begin(i)
	}
	c.awaitWhole()
	return c
}

func (c *patroniCluster) name(node int) string    { return fmt.Sprintf("pg%d", node+1) }
func (c *patroniCluster) machine(node int) string { return filepath.Join(c.dir, c.name(node)) }

// configure runs what README.md has for it, with this machine's values, and puts the machine's folder in place of the
// system's.
func (c *patroniCluster) configure(node int) {
	c.t.Helper()
	etcd, patroni := filepath.Join(c.machine(node), "etcd.yml"), filepath.Join(c.machine(node), "patroni.yml")
	c.shell("configure", "NUMBER=1", fmt.Sprintf("NUMBER=%d", node+1),
		"ONE=192.0.2.11", "ONE="+c.addrs[0], "TWO=192.0.2.12", "TWO="+c.addrs[1], "THREE=192.0.2.13", "THREE="+c.addrs[2],
		"NETWORK=192.0.2.0/24", "NETWORK=127.0.0.0/8",
		"SUPERUSER_PASSWORD=change-this-password", "SUPERUSER_PASSWORD="+superuserPassword,
		"/etc/etcd.yml", etcd, "/etc/patroni/config.yml", patroni, "&& chown postgres "+patroni, "")
	for path, folders := range map[string][]string{
		etcd: {"/var/lib/etcd", c.machine(node)},
		patroni: {
			"/var/lib/postgresql", c.machine(node), "/var/run/postgresql", c.machine(node),
			"/usr/lib/postgresql/15/bin", postgresBin(c.t),
		},
	} {
		content := servertest.Must(os.ReadFile(path))(c.t)
		if strings.Contains(string(content), "192.0.2.") {
			c.t.Fatalf("%s has addresses of the example:\n%s", path, content)
		}
		write(c.t, path, replace(c.t, path, string(content), folders...))
	}
}

// shell runs a block of README.md, with pairs of strings replaced, and returns what it printed.
func (c *patroniCluster) shell(block string, replacements ...string) string {
	c.t.Helper()
	_, text, found := strings.Cut(example(c.t, "patroni/README.md"), "\n```sh "+block+"\n")
	text, _, closed := strings.Cut(text, "\n```\n")
	if !found || !closed {
		c.t.Fatalf("README.md has no block %q", block)
	}
	cmd := exec.CommandContext(c.t.Context(), "bash", "-euc", replace(c.t, "README.md", text, replacements...))
	cmd.Dir = "../.."
	output, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Errorf("%s: %v\n%s", cmd, err, output)
	}
	return string(output)
}

func (c *patroniCluster) command(node int, name string, arguments ...string) *exec.Cmd {
	cmd := exec.Command(name, arguments...)
	cmd.Dir = c.machine(node)
	cmd.Env = append(os.Environ(), "HOME="+c.machine(node))
	return unprivileged(c.t, cmd, c.machine(node))
}

func (c *patroniCluster) begin(node int) {
	c.t.Helper()
	c.nodes[node] = servertest.Start(c.t, c.name(node), c.command(node, "patroni", filepath.Join(c.machine(node), "patroni.yml")))
}

// url is the address of one Postgres for its superuser.
func (c *patroniCluster) url(node int, database string) string {
	return fmt.Sprintf("postgres://postgres:%s@%s:5432/%s?sslmode=disable&connect_timeout=1", superuserPassword, c.addrs[node], database)
}

// databaseURL is what README.md gives our servers.
func (c *patroniCluster) databaseURL() string {
	c.t.Helper()
	text := example(c.t, "patroni/README.md", "192.0.2.11", c.addrs[0], "192.0.2.12", c.addrs[1], "192.0.2.13", c.addrs[2])
	_, url, found := strings.Cut(text, "\nDATABASE_URL=")
	url, _, _ = strings.Cut(url, "\n")
	if !found {
		c.t.Fatal("README.md has no DATABASE_URL")
	}
	return url
}

// roles are the nodes by their roles, as one of them sees it: leader, sync_standby, replica. Only those that run are in it.
func (c *patroniCluster) roles(node int) map[string][]int {
	response, err := http.Get("http://" + c.addrs[node] + ":8008/cluster")
	if err != nil {
		return nil
	}
	defer response.Body.Close()
	var cluster struct {
		Members []struct{ Name, Role, State string }
	}
	if err := json.NewDecoder(response.Body).Decode(&cluster); err != nil {
		return nil
	}
	roles := map[string][]int{}
	for _, m := range cluster.Members {
		number, err := strconv.Atoi(strings.TrimPrefix(m.Name, "pg"))
		if err == nil && (m.State == "running" || m.State == "streaming") {
			roles[m.Role] = append(roles[m.Role], number-1)
		}
	}
	return roles
}

// awaitWhole waits until there is a primary, a standby that its commits wait for, and another one; and returns the first
// two.
func (c *patroniCluster) awaitWhole() (primary, synchronous int) {
	c.t.Helper()
	servertest.Eventually(c.t, "Patroni has a primary, a synchronous standby and another one", func() bool {
		for _, node := range c.nodes {
			if !node.Running() {
				c.t.Fatalf("%s has ended: %v\n%s", node.Name, node.Err, node.Tail())
			}
		}
		roles := c.roles(0)
		for i := range c.nodes { // that one may not have heard yet of what the others have agreed upon
			if !slices.Equal(c.roles(i)["leader"], roles["leader"]) {
				return false
			}
		}
		if len(roles["leader"]) != 1 || len(roles["sync_standby"]) != 1 || len(roles["replica"]) != 1 {
			return false
		}
		primary, synchronous = roles["leader"][0], roles["sync_standby"][0]
		return true
	})
	return primary, synchronous
}

// signal sends a signal to a machine's Patroni, and to its Postgres with all that it has started.
func (c *patroniCluster) signal(node int, s syscall.Signal) {
	if p := c.nodes[node]; p != nil && p.Running() {
		_ = p.Cmd.Process.Signal(s)
	}
	file := filepath.Join(c.machine(node), "15", "accesskeys", "postmaster.pid")
	content, _ := os.ReadFile(file)
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(first)
	// The file outlives its process, whose number may be another one's by now.
	if cwd, _ := os.Readlink("/proc/" + first + "/cwd"); err == nil && cwd == filepath.Dir(file) {
		signalAll(pid, s)
	}
}

// kill ends a machine's Patroni and Postgres at once.
func (c *patroniCluster) kill(node int) {
	c.signal(node, syscall.SIGKILL)
	if c.nodes[node] != nil {
		<-c.nodes[node].Ended
	}
}

// withServers makes the database as README.md does, and starts three of our servers on it.
func (c *patroniCluster) withServers() []*server {
	c.t.Helper()
	primary, _ := c.awaitWhole()
	c.shell("database", "sudo -u postgres psql", "psql '"+c.url(primary, "postgres")+"'")
	value(c.t, c.url(primary, "postgres"), `CREATE TABLE scratch (at timestamptz DEFAULT now())`)
	list := c.shell("list", "/etc/patroni/config.yml", filepath.Join(c.machine(0), "patroni.yml"))
	if !strings.Contains(list, "Sync Standby") {
		c.t.Errorf("README.md says that a Sync Standby is listed:\n%s", list)
	}
	return newServers(c.t, c.databaseURL())
}

// programs are the versions of what the cluster consists of.
func (c *patroniCluster) programs() string {
	return strings.Join([]string{
		version(c.t, "patroni", "--version"), version(c.t, "etcd", "--version"),
		version(c.t, filepath.Join(postgresBin(c.t), "postgres"), "--version"),
	}, ", ")
}

// TestPatroniLosesNothing switches over, kills the primary with its Patroni, and stops both for longer than they may be
// silent, while clients make, use and delete keys.
func TestPatroniLosesNothing(t *testing.T) {
	t.Parallel()
	c := newPatroniCluster(t)
	w := witnessed(t, lightly, c.withServers()...)
	disasters := []struct {
		name  string
		times int
		do    func(primary, synchronous int) (after func())
	}{
		{"switchover", 4, func(primary, synchronous int) func() {
			switching := make(chan struct{})
			go func() {
				defer close(switching)
				config := filepath.Join(c.machine(primary), "patroni.yml")
				c.shell("switchover", "/etc/patroni/config.yml", config, "pg2", c.name(synchronous))
			}()
			return func() { <-switching }
		}},
		{"primary killed", 2, func(primary, _ int) func() {
			c.kill(primary)
			return func() { c.begin(primary) }
		}},
		{"primary stopped, going on later", 1, func(primary, _ int) func() {
			c.signal(primary, syscall.SIGSTOP)
			return func() { c.signal(primary, syscall.SIGCONT) }
		}},
	}
	figures := map[string]outage{}
	for _, d := range disasters {
		for range d.times {
			primary, synchronous := c.awaitWhole()
			w.settle()
			lost := w.now()
			after := d.do(primary, synchronous)
			accepting := w.takesWrites(c.url(synchronous, "postgres"))
			o := w.recovered(lost, accepting, 0)
			after()
			figures[d.name] = figures[d.name].and(o)
		}
	}
	c.awaitWhole()
	f := w.judge()
	f.kept(t)
	for _, d := range disasters {
		figures[d.name].soon(t)
		counted(t, "Patroni, "+d.name, c.programs(), "%d times, %v", d.times, figures[d.name])
	}
	counted(t, "Patroni, all of this", c.programs(), "%v", f)
}
