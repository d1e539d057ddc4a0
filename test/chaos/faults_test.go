package chaos

import (
	"context"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"accesskeys/internal/servertest"
)

// pause reports whether the time passed before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// leases is a random time between two numbers of leases.
func (f *fleet) leases(least, most float64) time.Duration {
	return time.Duration((least + rand.Float64()*(most-least)) * float64(f.lease))
}

// failed reports an error, which no fault's goroutine may end the test by.
func (f *fleet) failed(err error) bool {
	if err != nil {
		f.t.Error(err)
	}
	return err != nil
}

// each does something to every instance but one, or to all where that is nil.
func (f *fleet) each(but *instance, do func(*instance)) {
	for _, r := range f.instances {
		if r != but {
			do(r)
		}
	}
}

func (f *fleet) any() *instance { return f.instances[rand.IntN(len(f.instances))] }

// again makes a fault of one instance after the other, any or one of those named by their numbers, with a time between in which nothing is
// wrong.
func again(least, most float64, fault func(context.Context, *fleet, *instance), among ...int) func(context.Context, *fleet) {
	return func(ctx context.Context, f *fleet) {
		for pause(ctx, f.leases(least, most)) {
			r := f.any()
			if len(among) > 0 {
				r = f.instances[among[rand.IntN(len(among))]]
			}
			fault(ctx, f, r)
		}
	}
}

var (
	stopInstances   = again(0.1, 0.6, stopInstance)
	cutOffInstances = again(0.1, 0.6, cutOffInstance)
	loseInstances   = again(0.5, 1, loseInstance)
	killInstances   = again(0.2, 1, killInstance)
)

// stopInstance stops an instance for a while, in the middle of whatever it is doing.
func stopInstance(ctx context.Context, f *fleet, r *instance) {
	d := f.leases(0.5, 3)
	r.inject("stopped for %s", d)
	r.signal(syscall.SIGSTOP)
	pause(ctx, d)
	r.recover()
	r.signal(syscall.SIGCONT)
	r.settle(f.t.Context())
}

// cutOffInstance cuts an instance off from the database for a while.
func cutOffInstance(ctx context.Context, f *fleet, r *instance) {
	ways := []flow{{holdRequests: true, holdReplies: true}, {holdRequests: true}, {holdReplies: true}, {refuse: true}}
	way, lost, d := ways[rand.IntN(len(ways))], rand.IntN(2) == 0, f.leases(0.3, 2.5)
	r.inject("cut off for %s: %+v, and what is held back is lost: %t", d, way, lost)
	r.flow(way)
	pause(ctx, d)
	r.recover()
	if lost {
		for _, p := range r.proxies {
			p.cut()
		}
	}
	r.flow(f.usual)
	r.settle(f.t.Context())
}

// loseInstance cuts an instance off for much longer than a lease, with whatever it has begun. The others have to do without it.
func loseInstance(ctx context.Context, f *fleet, r *instance) {
	d := f.leases(5, 7)
	r.inject("lost for %s", d)
	r.flow(flow{holdRequests: true, holdReplies: true})
	pause(ctx, d)
	r.recover()
	r.flow(f.usual)
	r.settle(f.t.Context())
}

// killInstance kills an instance, and starts it again.
func killInstance(ctx context.Context, f *fleet, r *instance) {
	d := f.leases(0, 1.5)
	r.inject("killed for %s", d)
	r.kill()
	pause(ctx, d)
	r.recover()
	if !f.failed(r.start()) {
		r.settle(f.t.Context())
	}
}

// killListeners ends the sessions that listen, and now and then all idle ones.
func killListeners(ctx context.Context, f *fleet) {
	for i := 1; pause(ctx, rand.N(300*time.Millisecond)); i++ {
		condition := `query ILIKE 'listen%'`
		if i%8 == 0 {
			condition = `state = 'idle'`
		}
		ended, err := f.cluster.terminate(f.t.Context(), condition)
		if f.failed(err) {
			return
		}
		if ended > 0 {
			f.cycles.Add(1)
		}
	}
}

// restartPostgres stops Postgres cleanly again and again, crashPostgres kills it. Every other time an instance is out of reach
// meanwhile, and for some time after: what it was promised must have survived in the database.
func restartPostgres(ctx context.Context, f *fleet) {
	breakPostgres(ctx, f, "restarted", f.cluster.servers[0].Stop)
}
func crashPostgres(ctx context.Context, f *fleet) { breakPostgres(ctx, f, "killed", f.cluster.crash) }

func breakPostgres(ctx context.Context, f *fleet, what string, how func(context.Context) error) {
	for pause(ctx, f.leases(0.5, 2)) {
		var away sync.WaitGroup
		if rand.IntN(2) == 0 {
			out, r := stopInstance, f.any()
			if rand.IntN(2) == 0 {
				out = cutOffInstance
			}
			away.Go(func() { out(ctx, f, r) })
			pause(ctx, f.leases(0, 0.2))
		}
		f.broken.Add(1)
		f.note("Postgres is being %s", what)
		err := how(f.t.Context())
		if err == nil {
			time.Sleep(f.leases(0, 0.5))
			err = f.cluster.startAgain(f.t.Context())
		}
		if f.failed(err) {
			return
		}
		f.note("Postgres is back")
		for _, r := range f.instances {
			if r.fault.Load()%2 == 0 {
				r.awaitServing(f.t.Context())
			}
		}
		f.broken.Add(1)
		away.Wait()
		f.cycles.Add(1)
	}
}

// promoteStandby cuts the standby off from the primary and promotes it, while the primary lives on: one instance stays with
// it, the others go to the new one. In the end all do.
func promoteStandby(ctx context.Context, f *fleet) {
	if !pause(ctx, f.leases(0.5, 2)) {
		return
	}
	test := f.t.Context()
	stays := f.any()
	f.broken.Add(1)
	stays.inject("stays with the old primary")
	f.note("replication is cut")
	f.cluster.repl.set(flow{holdRequests: true, holdReplies: true})
	time.Sleep(f.leases(0, 1))
	f.each(stays, func(r *instance) { r.proxies[0].set(flow{refuse: true}) })
	f.note("the other instances are cut off from the old primary, the standby is being promoted")
	if !f.cluster.promote(f.t) {
		return
	}
	f.note("it is promoted")
	f.each(stays, func(r *instance) { r.awaitServing(test) })
	f.broken.Add(1)
	f.note("the others serve")
	pause(ctx, f.leases(2, 4))
	stays.recover()
	stays.proxies[0].set(flow{refuse: true})
	stays.settle(test)
	pause(ctx, f.leases(1, 2))
	f.cycles.Add(1)
}

// everything stops one instance, cuts another off, and ends listeners, all at once and with slow replies.
func everything(ctx context.Context, f *fleet) {
	var all sync.WaitGroup
	for _, fault := range []func(context.Context, *fleet){
		killListeners, again(0.1, 0.6, stopInstance, 0), again(0.1, 0.6, cutOffInstance, 1),
	} {
		all.Go(func() { fault(ctx, f) })
	}
	all.Wait()
}

// moveAddress promotes a standby that has everything, has the instances' address lead there for new connections, and leaves the old
// primary alive: feeds linger on it, and go on getting their leases there. In the end it is cut off.
func moveAddress(ctx context.Context, f *fleet) {
	if !pause(ctx, f.leases(0.5, 2)) {
		return
	}
	test := f.t.Context()
	f.broken.Add(1)
	for _, r := range f.instances {
		r.inject("its address is being moved")
		r.flow(flow{holdRequests: true})
	}
	f.note("nothing is sent to the old primary, until the standby has caught up")
	servertest.Eventually(f.t, "the standby caught up", func() bool {
		return f.cluster.text(f.t, 0, `SELECT bool_and(replay_lsn = pg_current_wal_lsn()) FROM pg_stat_replication`) == "true"
	})
	if !f.cluster.promote(f.t) {
		return
	}
	network, address := endpoint(f.t, f.cluster.direct[1])
	for _, r := range f.instances {
		r.proxies[0].move(network, address)
		r.flow(f.usual)
	}
	f.note("the address leads to the new primary; feeds linger on the old one")
	time.Sleep(f.leases(2, 4))
	f.note("the old primary is cut off")
	for _, r := range f.instances {
		r.recover()
		r.proxies[0].cut()
	}
	f.each(nil, func(r *instance) { r.settle(test) })
	f.broken.Add(1)
	pause(ctx, f.leases(1, 2))
}

// silenceMessages has the database send no warning by itself.
func silenceMessages(t testing.TB, f *fleet) {
	f.cluster.set(t, "client_min_messages", "error")
}

// cancelWaits cuts the standby off, cancels every wait for it, so that commits return which no standby has, and then promotes the
// standby in the primary's place.
func cancelWaits(ctx context.Context, f *fleet) {
	if !pause(ctx, f.leases(0.5, 2)) {
		return
	}
	test := f.t.Context()
	f.broken.Add(1)
	f.each(nil, func(r *instance) { r.inject("commits wait for no standby") })
	f.cluster.repl.set(flow{holdRequests: true, holdReplies: true})
	f.note("replication is cut, and waits for it are cancelled")
	for end := time.Now().Add(f.leases(1, 2)); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		_, err := f.cluster.query(test, 0, `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
		if f.failed(err) {
			return
		}
	}
	f.each(nil, func(r *instance) { r.proxies[0].set(flow{refuse: true}) })
	f.note("the standby is being promoted")
	if !f.cluster.promote(f.t) {
		return
	}
	for _, r := range f.instances {
		r.recover()
		r.settle(test)
	}
	f.broken.Add(1)
	pause(ctx, f.leases(1, 2))
}

// emptyTables empties the tables by which the instances agree: as it is refused, and with the triggers off that refuse it, for
// those of which nobody's lease depends. Every other time an instance is stopped meanwhile.
func emptyTables(ctx context.Context, f *fleet) {
	for i := 0; pause(ctx, f.leases(0.3, 1)); i++ {
		var away sync.WaitGroup
		if i%2 == 0 {
			away.Go(func() { stopInstance(ctx, f, f.any()) })
			pause(ctx, f.leases(0, 0.2))
		}
		test := f.t.Context()
		for _, statement := range []string{`TRUNCATE instances`, `DELETE FROM instances`, `UPDATE instances SET position = 1000000000`,
			`TRUNCATE changes`, `DELETE FROM changes`, `UPDATE change_head SET position = 0`} {
			if _, err := f.cluster.query(test, 0, statement); err == nil {
				f.t.Errorf("%s was not refused", statement)
			}
		}
		table := []string{"changes", "change_head"}[i%2]
		f.broken.Add(1)
		f.note("%s is being emptied", table)
		for _, statement := range []string{
			`ALTER TABLE ` + table + ` DISABLE TRIGGER ALL`, `TRUNCATE ` + table, `ALTER TABLE ` + table + ` ENABLE ALWAYS TRIGGER guarded`,
			`ALTER TABLE ` + table + ` ENABLE ALWAYS TRIGGER guarded_emptying`,
		} {
			f.cluster.exec(f.t, 0, statement)
		}
		away.Wait()
		f.each(nil, func(r *instance) { r.awaitServing(test) })
		f.note("all serve again")
		f.broken.Add(1)
		f.cycles.Add(1)
	}
}
