package authcache

import (
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/changelog"
	"accesskeys/internal/store"
)

const (
	// ageParts is how many times in its life a row is looked at. In the last part but one it is read again, in the last one it is
	// forgotten: so no row becomes older than it may.
	ageParts = 10
	// refreshBatch is how many rows are read again together.
	refreshBatch = 1_000
	// refreshPoll is how often it is looked whether the log has been applied.
	refreshPoll = 5 * time.Millisecond
	// namedRows is how many rows a log line names.
	namedRows = 5
)

// runRefresh reads what is remembered again before it is older than it may be, until ctx ends. It is the net under the log: what
// was changed around it, nobody else would find.
func (r *Cache) runRefresh(ctx context.Context) error {
	part := r.maxAge / ageParts
	tick := time.NewTicker(part)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		due := r.agedRows()
		if len(due) == 0 {
			continue
		}
		// Evenly over most of the time until the next look.
		batches := slices.Collect(slices.Chunk(due, refreshBatch))
		pause := part * 3 / 4 / time.Duration(len(batches))
		for i, batch := range batches {
			if i > 0 {
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return nil
				}
			}
			r.refresh(ctx, batch)
		}
	}
}

// aged is a row as it was when it was due.
type aged struct {
	key key
	row aging
}

// agedRows returns the rows that have to be read again, and forgets those for which it is too late.
func (r *Cache) agedRows() (due []aged) {
	now, part := r.clock(), r.maxAge/ageParts
	var late []key
	var missed int64
	for k, value := range r.rows.All() {
		row, ok := value.(aging)
		if !ok {
			continue // what follows from its bytes doesn't age
		}
		own := k.kind != kindCustomer && k.kind != kindServiceAccount // these are read with what is theirs, while there is any
		switch age := now - row.at(); {
		case age >= (ageParts-1)*part:
			late = append(late, k)
			if own {
				missed++
			}
		case age >= (ageParts-2)*part && own:
			due = append(due, aged{k, row})
		}
	}
	for _, k := range late {
		r.rows.Invalidate(k)
	}
	r.aged.Add(missed)
	return due
}

// refresh reads rows again. Those that are as remembered may be remembered on; the others are forgotten, since something changed them
// without the log.
func (r *Cache) refresh(ctx context.Context, batch []aged) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	var l store.Lookup
	for _, a := range batch {
		a.key.addTo(&l)
	}
	at, known, under := r.clock(), r.state.Load().applied, r.restOn(batch)
	// The head after the rows: once it is applied, everything is forgotten that the log says was changed up to then.
	found, err := r.lookup(ctx, l, known, store.HeadLast)
	if err != nil || !r.waitApplied(ctx, found.Head) {
		return // it is tried again while there is time
	}
	c := comparison{r: r, at: at, under: under}
	for _, a := range batch {
		c.compare(a, found)
	}
	if len(c.different) > 0 {
		r.unlogged.Add(int64(len(c.different)))
		r.log.Error("rows were changed without an entry in the log of changes; they are forgotten. Look for disabled triggers, "+
			"and for programs that write to these tables", "rows", len(c.different), "of_them", c.different[:min(namedRows, len(c.different))])
	}
}

// waitApplied reports whether the log has been applied up to a position before ctx ends.
func (r *Cache) waitApplied(ctx context.Context, p changelog.Position) bool {
	for r.state.Load().applied.Number < p.Number {
		select {
		case <-time.After(refreshPoll):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// restOn returns the rows that others rest on, as they are remembered.
func (r *Cache) restOn(batch []aged) map[key]aging {
	under := map[key]aging{}
	add := func(k key) aging {
		row, known := under[k]
		if known {
			return row
		}
		if entry, ok := r.rows.GetEntryQuietly(k); ok {
			row, _ = entry.Value.(aging)
		}
		under[k] = row
		return row
	}
	for _, a := range batch {
		switch row := a.row.(type) {
		case *accessKeyRow:
			add(idKey(kindCustomer, row.customerID))
			if row.bound {
				add(idKey(kindAgent, row.agentID))
			}
			if row.serviceAccountID != uuid.Nil {
				add(idKey(kindServiceAccount, row.serviceAccountID))
			}
		case *agentRow:
			add(idKey(kindCustomer, row.CustomerID))
		case *serviceAccountKeyRow:
			if account, ok := add(idKey(kindServiceAccount, row.AccountID)).(*serviceAccountRow); ok {
				add(idKey(kindCustomer, account.CustomerID))
			}
		}
	}
	return under
}

// comparison holds what is remembered against what was found at a time.
type comparison struct {
	r         *Cache
	at        time.Duration
	under     map[key]aging // what the rows that are compared rest on, as it was remembered before the reading
	different []string
}

// compare looks at a row and at what was read with it.
func (c *comparison) compare(a aged, found store.Found) {
	switch a.key.kind {
	case kindAccessKey:
		read, is := found.AccessKeys[a.key.sum]
		row, _ := a.row.(*accessKeyRow)
		c.judge(a, is && row.same(newAccessKeyRow(read)), "accesskeys", row.id)
		if !is {
			return
		}
		c.customer(read.CustomerID, read.CustomerTmDelete)
		if read.Agent != nil {
			c.agent(*read.Agent)
		}
		if read.ServiceAccount != nil {
			c.serviceAccount(*read.ServiceAccount)
		}
	case kindAgent:
		read, is := found.Agents[a.key.id()]
		row, _ := a.row.(*agentRow)
		c.judge(a, is && sameAgent(row.Agent, read.Agent), "agents", a.key.id())
		if is {
			c.customer(read.CustomerID, read.CustomerTmDelete)
		}
	case kindServiceAccountKey:
		read, is := found.ServiceAccountKeys[a.key.id()]
		row, _ := a.row.(*serviceAccountKeyRow)
		c.judge(a, is && sameServiceAccountKey(row.ServiceAccountKey, read.Key), "service_account_keys", a.key.id())
		if is {
			c.serviceAccount(read.Account)
			c.customer(read.Account.CustomerID, read.CustomerTmDelete)
		}
	case kindCustomer, kindServiceAccount: // which are not due by themselves
	}
}

func (c *comparison) customer(id uuid.UUID, tmDelete time.Time) {
	k := idKey(kindCustomer, id)
	if row, ok := c.under[k].(*customerRow); ok {
		c.judge(aged{k, row}, row.tmDelete.Equal(tmDelete), "customers", id)
	}
}

func (c *comparison) agent(read store.Agent) {
	k := idKey(kindAgent, read.ID)
	if row, ok := c.under[k].(*agentRow); ok {
		c.judge(aged{k, row}, sameAgent(row.Agent, read), "agents", read.ID)
	}
}

func (c *comparison) serviceAccount(read store.ServiceAccount) {
	k := idKey(kindServiceAccount, read.ID)
	if row, ok := c.under[k].(*serviceAccountRow); ok {
		c.judge(aged{k, row}, sameServiceAccount(row.ServiceAccount, read), "service_accounts", read.ID)
	}
}

// judge keeps a row that is as it was read, and forgets one that isn't. One that was forgotten, or read anew, since before the reading,
// is left alone: the log had something to say about it, or it may be newer than the reading.
func (c *comparison) judge(a aged, same bool, noun string, id uuid.UUID) {
	entry, ok := c.r.rows.GetEntryQuietly(a.key)
	if !ok || entry.Value != any(a.row) {
		return
	}
	if same {
		a.row.touch(max(a.row.at(), c.at))
		return
	}
	c.r.rows.Invalidate(a.key)
	c.different = append(c.different, noun+" "+id.String())
}

func sameAgent(a, b store.Agent) bool {
	return a.ID == b.ID && a.CustomerID == b.CustomerID && a.Username == b.Username && a.Name == b.Name && a.Detail == b.Detail &&
		a.Permission == b.Permission && a.TmPassword.Equal(b.TmPassword) && a.TmCreate.Equal(b.TmCreate) &&
		a.TmUpdate.Equal(b.TmUpdate) && a.TmDelete.Equal(b.TmDelete)
}

func sameServiceAccount(a, b store.ServiceAccount) bool {
	return a.ID == b.ID && a.CustomerID == b.CustomerID && a.Name == b.Name && a.Detail == b.Detail && slices.Equal(a.Roles, b.Roles) &&
		a.TmCreate.Equal(b.TmCreate) && a.TmUpdate.Equal(b.TmUpdate) && a.TmDelete.Equal(b.TmDelete)
}

func sameServiceAccountKey(a, b store.ServiceAccountKey) bool {
	return a.ID == b.ID && a.AccountID == b.AccountID && a.Algorithm == b.Algorithm && slices.Equal(a.PublicKey, b.PublicKey) &&
		a.TmCreate.Equal(b.TmCreate) && a.TmUpdate.Equal(b.TmUpdate) && a.TmDelete.Equal(b.TmDelete)
}
