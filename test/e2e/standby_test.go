//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/servertest"

	"github.com/jackc/pgx/v5"
)

// standbyPair is two Postgres on loopback, of which one follows the other.
type standbyPair struct {
	t       testing.TB
	dir     string
	bin     string
	addrs   [2]string
	nodes   [2]*program
	primary int
}

// newStandbyPair starts a primary and its standby. Commits wait for the standby once synchronous is called.
func newStandbyPair(t testing.TB) *standbyPair {
	t.Helper()
	machines := freeMachines(t)
	c := &standbyPair{t: t, dir: folder(t), bin: postgresBin(t), addrs: [2]string{machines[0] + ":5432", machines[1] + ":5432"}}
	c.command("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--pgdata="+c.data(0))
	c.start(0)
	value(c.t, c.url(0), `CREATE DATABASE accesskeys`)
	value(c.t, c.url(0), `CREATE TABLE scratch (at timestamptz DEFAULT now())`)
	c.follow()
	return c
}

// freeMachines are three addresses of the loopback network on which etcd's, Postgres' and Patroni's ports are free, and
// stay so: what goes out from this machine to itself has 127.0.0.1.
func freeMachines(t testing.TB) (addrs [3]string) {
	t.Helper()
	servertest.Eventually(t, "there are three addresses whose ports are free", func() bool {
		network := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(250), rand.IntN(250))
		for i := range addrs {
			addrs[i] = network + strconv.Itoa(11+i)
			for _, port := range []string{"2379", "2380", "5432", "8008"} {
				if listens(addrs[i] + ":" + port) {
					return false
				}
			}
		}
		return true
	})
	return addrs
}

// postgresBin is the folder of Postgres' programs.
func postgresBin(t testing.TB) string {
	t.Helper()
	return filepath.Dir(servertest.PostgresProgram(t, "pg_basebackup"))
}

func (c *standbyPair) data(node int) string { return filepath.Join(c.dir, strconv.Itoa(node)) }

// url is the address of one Postgres, with the scratch table.
func (c *standbyPair) url(node int) string {
	return "postgres://postgres@" + c.addrs[node] + "/postgres?sslmode=disable&connect_timeout=1"
}

// databaseURL is what our servers are given: both hosts, always in the same order.
func (c *standbyPair) databaseURL() string {
	return "postgres://postgres@" + c.addrs[0] + "," + c.addrs[1] + "/accesskeys?sslmode=disable&target_session_attrs=read-write"
}

func (c *standbyPair) command(name string, arguments ...string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), filepath.Join(c.bin, name), arguments...)
	cmd.Dir = c.dir
	if output, err := unprivileged(c.t, cmd, c.dir).CombinedOutput(); err != nil {
		c.t.Fatalf("%s: %v\n%s", name, err, output)
	}
}

func (c *standbyPair) start(node int) {
	c.t.Helper()
	host, port, _ := net.SplitHostPort(c.addrs[node])
	cmd := exec.Command(filepath.Join(c.bin, "postgres"), "-D", c.data(node), "-h", host, "-p", port, "-k", "",
		"-c", "max_connections=200", "-c", "wal_retrieve_retry_interval=100ms")
	cmd.Dir = c.dir
	c.nodes[node] = servertest.Start(c.t, fmt.Sprintf("postgres-%d", node), unprivileged(c.t, cmd))
	c.t.Cleanup(func() { c.kill(node) })
	c.nodes[node].Await(c.t, "Postgres answers", func() bool {
		_, err := query(c.t.Context(), c.url(node), `SELECT 1`)
		return err == nil
	})
}

// follow makes a standby of the server that is not the primary, out of a fresh copy.
func (c *standbyPair) follow() {
	c.t.Helper()
	standby := 1 - c.primary
	servertest.OK(c.t, os.RemoveAll(c.data(standby)))
	host, port, _ := net.SplitHostPort(c.addrs[c.primary])
	c.command("pg_basebackup", "--pgdata="+c.data(standby), "--checkpoint=fast", "--write-recovery-conf",
		"--dbname=host="+host+" port="+port+" user=postgres application_name=standby")
	c.start(standby)
	servertest.Eventually(c.t, "the standby follows", func() bool {
		return value(c.t, c.url(c.primary), `
			SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = 'standby'`) == "1"
	})
}

// synchronous makes commits wait for the standby, and returns once all that was committed before is safe, too. It is set on
// a primary that has its standby, so that no copy has it: one that was promoted would wait for a standby that it doesn't
// have.
func (c *standbyPair) synchronous() {
	c.t.Helper()
	value(c.t, c.url(c.primary), `ALTER SYSTEM SET synchronous_standby_names = 'standby'`)
	value(c.t, c.url(c.primary), `SELECT pg_reload_conf()`)
	servertest.Eventually(c.t, "the standby is synchronous", func() bool {
		return value(c.t, c.url(c.primary), `SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'`) == "1"
	})
	value(c.t, c.url(c.primary), `INSERT INTO scratch DEFAULT VALUES`)
}

// promote makes a primary of the standby.
func (c *standbyPair) promote() {
	c.t.Helper()
	c.primary = 1 - c.primary
	if promoted := value(c.t, c.url(c.primary), `SELECT pg_promote(true, 60)`); promoted != "true" {
		c.t.Fatalf("pg_promote answered %s", promoted)
	}
}

// query runs a statement and returns the last row's first value.
func query(ctx context.Context, url, sql string) (value any, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, err := conn.Query(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() && err == nil {
		var values []any
		if values, err = rows.Values(); err == nil {
			value = values[0]
		}
	}
	return value, errors.Join(err, rows.Err())
}

// value is the last row's first value, as text.
func value(t testing.TB, url, sql string) string {
	t.Helper()
	got, err := query(t.Context(), url, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return fmt.Sprint(got)
}

// program is Postgres with its version.
func (c *standbyPair) program() string {
	return version(c.t, filepath.Join(c.bin, "postgres"), "--version")
}

// kill ends a Postgres as a machine that loses its power does: none of its processes does anything any more.
func (c *standbyPair) kill(node int) {
	c.signal(node, syscall.SIGKILL)
	<-c.nodes[node].Ended
}

// signal sends a signal to every process of a Postgres.
func (c *standbyPair) signal(node int, s syscall.Signal) {
	if c.nodes[node].Running() {
		signalAll(c.nodes[node].Cmd.Process.Pid, s)
	}
}

// signalAll sends a signal to the first process of a Postgres and to all that it has started. They are in no common process group: each
// makes its own.
func signalAll(first int, s syscall.Signal) {
	_ = syscall.Kill(first, syscall.SIGSTOP) // or it would start others meanwhile
	for _, pid := range servertest.Children(first) {
		_ = syscall.Kill(pid, s)
	}
	_ = syscall.Kill(first, s)
}

// newServers are three of ours on these databases.
func newServers(t testing.TB, database string) []*server {
	t.Helper()
	return []*server{newServer(t, database), newServer(t, database), newServer(t, database)} // of which the first migrates
}

// TestPromotionLosesNothing kills the primary again and again, and promotes the standby that its commits have waited for.
func TestPromotionLosesNothing(t *testing.T) {
	t.Parallel()
	const promotions = 6 // both ways three times
	c := newStandbyPair(t)
	c.synchronous()
	w := witnessed(t, lightly, newServers(t, c.databaseURL())...)
	var all outage
	for range promotions {
		w.settle()
		c.kill(c.primary)
		lost := w.now()
		c.promote()
		all = all.and(w.recovered(lost, w.takesWrites(c.url(c.primary)), 0))
		c.follow()
		c.synchronous()
	}
	f := w.judge()
	f.kept(t)
	all.soon(t)
	counted(t, "primary killed, synchronous standby promoted", c.program(),
		"%d promotions, %v, %v", promotions, f, all)
}

// TestPromotionWhileThePrimaryIsSilentLosesNothing promotes the standby while nobody gets an answer from the primary, not
// even that there is nobody. Who asks one host after the other waits for it each time.
func TestPromotionWhileThePrimaryIsSilentLosesNothing(t *testing.T) {
	t.Parallel()
	for _, silence := range []struct {
		name  string
		begin func(c *standbyPair, node int) (end func())
	}{
		// Connections to it stay open, new ones are taken, and nothing comes.
		{"hangs", func(c *standbyPair, node int) func() {
			c.signal(node, syscall.SIGSTOP)
			return func() { c.kill(node) } // who promotes beside a primary that may go on has to fence it
		}},
		// What is sent to it vanishes.
		{"is gone", func(c *standbyPair, node int) func() {
			c.kill(node)
			return swallow(c.t, c.addrs[node])
		}},
	} {
		t.Run(silence.name, func(t *testing.T) {
			t.Parallel()
			c := newStandbyPair(t)
			c.synchronous()
			servers := newServers(t, c.databaseURL())
			w := witnessed(t, heavily, servers...)
			w.settle()
			end := silence.begin(c, c.primary)
			lost := w.now()
			c.promote()
			accepting := w.takesWrites(c.url(c.primary))
			late := newServer(t, c.databaseURL())
			o := w.recovered(lost, accepting, 8*time.Second) // the time-outs of what was under way are over by then
			id, _ := late.newKey(t)
			servers[0].deleteKey(t, id)
			end()
			f := w.judge()
			f.kept(t)
			o.soon(t)
			counted(t, "primary "+silence.name+", synchronous standby promoted", c.program(), "%v, %v", f, o)
		})
	}
}

// swallow makes a port on which connecting takes for ever, as with a machine that has lost its power, until end is called:
// the system drops what would be one connection too many in a queue that nobody empties.
func swallow(t testing.TB, addr string) (end func()) {
	t.Helper()
	resolved := servertest.Must(net.ResolveTCPAddr("tcp4", addr))(t)
	fd := servertest.Must(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0))(t)
	end = sync.OnceFunc(func() { _ = syscall.Close(fd) })
	t.Cleanup(end)
	servertest.OK(t, syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1),
		syscall.Bind(fd, &syscall.SockaddrInet4{Port: resolved.Port, Addr: [4]byte(resolved.IP.To4())}), syscall.Listen(fd, 0))
	servertest.Eventually(t, "connecting takes for ever", func() bool {
		conn, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
			return false
		}
		var timeout net.Error
		return errors.As(err, &timeout) && timeout.Timeout()
	})
	return end
}

// TestPromotionBesideALivingPrimaryUndoesNothing promotes the standby while the primary goes on, and answers clients.
// Servers with a lease find out, since its commits are confirmed no more; one with CACHE_LEASE=0 goes on to believe it,
// which is what fencing is for.
func TestPromotionBesideALivingPrimaryUndoesNothing(t *testing.T) {
	t.Parallel()
	c := newStandbyPair(t)
	c.synchronous()
	servers := newServers(t, c.databaseURL())
	// It knows the old primary alone: with several hosts it would find the new one as soon as it needs a connection.
	believer := newServer(t, "postgres://postgres@"+c.addrs[c.primary]+"/accesskeys?sslmode=disable", "CACHE_LEASE=0")
	w := witnessed(t, lightly, servers...)
	w.settle()
	id, token := believer.newKey(t)
	accepts := func() (accepted bool) {
		servertest.Eventually(t, "the server with CACHE_LEASE=0 can tell", func() bool { // a busy machine may keep it from answering in time
			a := believer.call(http.MethodGet, "/v1.0/me", token, "")
			accepted = a.status == http.StatusOK
			return !away(a)
		})
		return accepted
	}
	if !accepts() {
		t.Fatal("a key that was just made is refused")
	}
	lost := w.now()
	c.promote()
	w.excuse() // no lease goes on after the promotion
	o := w.recovered(lost, w.takesWrites(c.url(c.primary)), 15*time.Second)
	servertest.Eventually(t, "the key is deleted", func() bool { // a 404 means that it was, when there was no answer
		a := servers[0].call(http.MethodDelete, "/v1.0/accesskeys/"+id, adminKey, "")
		return a.status == http.StatusOK || a.status == http.StatusNotFound
	})
	believed := accepts()
	if !believed {
		t.Error("the server with CACHE_LEASE=0 does not go by the old primary: what is this test about?")
	}
	c.kill(1 - c.primary)
	f := w.judge()
	f.kept(t)
	counted(t, "primary lives, synchronous standby promoted", c.program(),
		"%v, %v; new keys refused: %d; with CACHE_LEASE=0 a revoked one was accepted: %t", f, o, f.excused, believed)
}

// TestOnlySynchronousReplicationKeepsPromises cuts the standby off before the primary dies. Without synchronous replication
// the witness finds what that loses, as it would if the other tests lost anything; with it nothing is acknowledged
// meanwhile.
func TestOnlySynchronousReplicationKeepsPromises(t *testing.T) {
	t.Parallel()
	for _, synchronous := range []bool{false, true} {
		t.Run(fmt.Sprintf("synchronous=%t", synchronous), func(t *testing.T) {
			t.Parallel()
			c := newStandbyPair(t)
			if synchronous {
				c.synchronous()
			}
			w := witnessed(t, lightly, newServers(t, c.databaseURL())...)
			w.settle()
			sender := servertest.Must(strconv.Atoi(value(c.t, c.url(c.primary), `SELECT pid FROM pg_stat_replication`)))(t)
			before := w.count()
			servertest.OK(t, syscall.Kill(sender, syscall.SIGSTOP))
			if synchronous {
				servertest.Eventually(t, "POSTs fail", func() bool { return w.count().unknown > before.unknown })
				silent := w.count()
				servertest.Eventually(t, "more of them fail", func() bool { return w.count().unknown > silent.unknown+20 })
				if now := w.count(); now.made != silent.made || now.revoked != silent.revoked {
					t.Errorf("while the standby was cut off %d keys and %d revocations were acknowledged",
						now.made-silent.made, now.revoked-silent.revoked)
				}
			} else {
				servertest.Eventually(t, "keys were made and revoked meanwhile", func() bool {
					now := w.count()
					return now.made > before.made+50 && now.revoked > before.revoked+20
				})
			}
			c.kill(c.primary)
			lost := w.now()
			c.promote()
			w.recovered(lost, w.takesWrites(c.url(c.primary)), 0)
			f := w.judge()
			if synchronous {
				f.kept(t)
			} else if f.lost == 0 || f.undone == 0 {
				t.Errorf("the witness has found %d lost keys and %d undone revocations", f.lost, f.undone)
			}
			what := fmt.Sprintf("standby cut off, primary killed, standby promoted; synchronous: %t", synchronous)
			counted(t, what, c.program(), "%v", f)
		})
	}
}
