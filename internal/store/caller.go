package store

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"accesskeys/internal/changelog"
	"accesskeys/internal/postgres"
)

// Caller is on whose behalf a write is made: what the caller's credential rests on, as it was when somebody decided that the
// caller may do it. A write commits only while all of that is still so; otherwise it returns ErrChanged. The zero Caller is
// Operator.
type Caller struct {
	customerID uuid.UUID // the nil UUID: no credential
	// Each of these is part of the credential unless its id is the nil UUID.
	accessKey struct {
		id    uuid.UUID
		roles []string
	}
	agent struct {
		id         uuid.UUID
		permission int64
		tmPassword time.Time // of one that has logged in, else zero
	}
	serviceAccount struct {
		id    uuid.UUID
		roles []string
	}
	serviceAccountKey uuid.UUID
	expires           time.Time // of a token; a key's own expiry is in its row
	creator           Creator
}

// Creator is who made something, as it is stored with what was made.
type Creator struct {
	Type string // agent, accesskey or service_account
	ID   uuid.UUID
}

// Operator is a caller without a credential: somebody at the command line, or the service itself.
func Operator() Caller { return Caller{} }

// AgentCaller is an agent that has logged in, with a token that ends at expires.
func AgentCaller(a Agent, expires time.Time) Caller {
	c := Caller{customerID: a.CustomerID, expires: expires, creator: Creator{"agent", a.ID}}
	c.agent.id, c.agent.permission, c.agent.tmPassword = a.ID, a.Permission, a.TmPassword
	return c
}

// AccessKeyCaller is an access key, with the agent that it is bound to and the service account that made it, where there are such.
func AccessKeyCaller(k AccessKeyCredential) Caller {
	c := Caller{customerID: k.CustomerID, creator: Creator{"accesskey", k.ID}}
	c.accessKey.id, c.accessKey.roles = k.ID, k.Roles
	if k.Agent != nil {
		c.agent.id, c.agent.permission = k.Agent.ID, k.Agent.Permission
	}
	if k.ServiceAccount != nil {
		c.serviceAccount.id, c.serviceAccount.roles = k.ServiceAccount.ID, k.ServiceAccount.Roles
	}
	return c
}

// ServiceAccountCaller is an account that has signed a token, which is accepted until expires.
func ServiceAccountCaller(s ServiceAccountCredential, expires time.Time) Caller {
	c := Caller{
		customerID: s.Account.CustomerID, serviceAccountKey: s.Key.ID, expires: expires,
		creator: Creator{"service_account", s.Account.ID},
	}
	c.serviceAccount.id, c.serviceAccount.roles = s.Account.ID, s.Account.Roles
	return c
}

// serviceAccountID is the account in whose name the caller acts, which what it makes inherits; null where there is none.
func (c Caller) serviceAccountID() pgtype.UUID { return postgres.NullableUUID(c.serviceAccount.id) }

// target is what a write is done to, as it was when somebody decided that the caller may do it.
type target struct {
	customerID uuid.UUID // whose rows are written; the nil UUID for a customer that is yet to be
	agent      agentState
}

// agentState is an agent as the decision saw it, whose power the caller must not lack. The nil UUID stands for none.
type agentState struct {
	id         uuid.UUID
	permission int64
}

// on is the target that is an agent. Nobody decided what an operator may do, and an agent may always do to itself what it may.
func (c Caller) on(customerID, agentID uuid.UUID, permission int64) target {
	t := target{customerID: customerID}
	if c.customerID != uuid.Nil && c.agent.id != agentID {
		t.agent = agentState{agentID, permission}
	}
	return t
}

// Codes with which admit_write ends a transaction.
const (
	codeChanged   = "AK001" // the caller, or what it acts on, is not as it was
	codeElsewhere = "AK002" // this database doesn't hold this server's last heartbeat
	codeIsolation = "AK003" // the snapshot may be older than the locks
)

// CustomersLock is the class of the advisory locks under which writes and revocations exclude each other. It stands as a number in
// migration 4, and must never change.
const CustomersLock = 0x61636b63 // "ackc"

// CustomerLockKey is the key of a customer's lock. There are 256; customers that share one wait for each other's revocations.
func CustomerLockKey(customerID uuid.UUID) int32 { return int32(customerID[15]) }

// mayWrite stands in a statement for the call of admit_write. It belongs where Postgres evaluates it once, before anything else.
const mayWrite = `<may write>`

// The calls, with "@" for the numbers of their parameters.
const (
	callOfAdmitWrite          = `admit_write($@, $@, $@, $@, $@, $@, $@, $@, $@, $@, $@, $@, $@, $@, $@, $@, $@, $@, $@)`
	callOfAdmitAccessKeyWrite = `admit_accesskey_write($@, $@, $@, $@)`
)

// admitted is a statement with mayWrite in it made whole: it waits for the locks, exclusive ones where it revises, and checks
// caller and target. The parameters come behind its own.
func admitted(sql string, args []any, c Caller, t target, revises bool, w changelog.Witness) (string, []any) {
	before, after, _ := strings.Cut(sql, mayWrite)
	call, own := callOfAdmitWrite, len(args)
	if w == (changelog.Witness{}) && !revises && c.isCustomerWideKey() && t == (target{customerID: c.customerID}) {
		call = callOfAdmitAccessKeyWrite
		args = append(args, CustomerLockKey(c.customerID), postgres.UUID(c.customerID), postgres.UUID(c.accessKey.id), c.accessKey.roles)
	} else {
		args = append(args, admission(c, t, revises, w)...)
	}
	b := make([]byte, 0, len(sql)+len(call)+40)
	b = append(b, before...)
	for _, r := range []byte(call) {
		if r == '@' {
			own++
			b = strconv.AppendInt(b, int64(own), 10)
		} else {
			b = append(b, r)
		}
	}
	b = append(b, after...)
	return string(b), args
}

// isCustomerWideKey reports whether nothing but an access key and its customer are what the credential rests on.
func (c Caller) isCustomerWideKey() bool {
	return c.accessKey.id != uuid.Nil && c.agent.id == uuid.Nil && c.serviceAccount.id == uuid.Nil
}

// admission are the parameters of admit_write.
func admission(c Caller, t target, revises bool, w changelog.Witness) []any {
	type lock struct {
		key       int32
		exclusive bool
	}
	var locks []lock
	if t.customerID != uuid.Nil {
		locks = append(locks, lock{CustomerLockKey(t.customerID), revises})
	}
	if c.customerID != uuid.Nil && c.customerID != t.customerID {
		locks = append(locks, lock{CustomerLockKey(c.customerID), false})
	}
	if len(locks) == 2 {
		// In one order everywhere, or two writes could wait for each other.
		slices.SortFunc(locks, func(a, b lock) int { return cmp.Compare(a.key, b.key) })
		if locks[0].key == locks[1].key {
			locks = []lock{{locks[0].key, revises}}
		}
	}
	// Values, not pointers into locks.
	var keys [2]pgtype.Int4
	var exclusive [2]bool
	for i, l := range locks {
		keys[i], exclusive[i] = pgtype.Int4{Int32: l.key, Valid: true}, l.exclusive
	}
	return []any{
		keys[0], exclusive[0], keys[1], exclusive[1],
		postgres.NullableUUID(w.ID), w.Seq,
		postgres.NullableUUID(c.customerID), postgres.NullableUUID(t.customerID),
		postgres.NullableUUID(c.accessKey.id), c.accessKey.roles,
		postgres.NullableUUID(c.agent.id), c.agent.permission, nullableTime(c.agent.tmPassword),
		postgres.NullableUUID(c.serviceAccount.id), c.serviceAccount.roles, postgres.NullableUUID(c.serviceAccountKey),
		nullableTime(c.expires),
		postgres.NullableUUID(t.agent.id), t.agent.permission,
	}
}

// nullableTime is a time, null where it is zero.
func nullableTime(t time.Time) pgtype.Timestamptz {
	return pgtype.Timestamptz{Time: t, Valid: !t.IsZero()}
}
