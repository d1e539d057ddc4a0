package api_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"accesskeys/internal/auth"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// accepts fails the test unless the server takes each of these credentials.
func (h *harness) accepts(bearers ...string) {
	h.t.Helper()
	for i, bearer := range bearers {
		if got := h.get("/v1.0/me", bearer); got.code != http.StatusOK {
			h.t.Errorf("credential %d of %d: %d %s", i+1, len(bearers), got.code, got.raw)
		}
	}
}

// rejects fails the test unless the server refuses each of these credentials.
func (h *harness) rejects(bearers ...string) {
	h.t.Helper()
	for _, bearer := range bearers {
		h.get("/v1.0/me", bearer).refuses(http.StatusUnauthorized, "INVALID_CREDENTIALS")
	}
}

// failure is the object in an error's envelope, nil in other answers.
func (r response) failure() map[string]any {
	r.t.Helper()
	failure, _ := r.json()["error"].(map[string]any)
	return failure
}

// items are the objects of a list.
func (r response) items() (items []map[string]any) {
	r.t.Helper()
	for _, item := range r.wants(http.StatusOK).json()["result"].([]any) {
		items = append(items, item.(map[string]any))
	}
	return items
}

// atOnce sends requests at the same time, to one server after the other.
func atOnce(t *testing.T, servers []*harness, requests ...request) []response {
	t.Helper()
	answers := make([]response, len(requests))
	var group errgroup.Group
	for i, req := range requests {
		group.Go(func() (err error) {
			_, _, answers[i], err = servers[i%len(servers)].do(req)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return answers
}

// statuses counts answers by their status.
func statuses(answers []response) map[int]int {
	counts := map[int]int{}
	for _, answer := range answers {
		counts[answer.code]++
	}
	return counts
}

// newAgent makes an agent through the store, with the password of every tenant's.
func (h *harness) newAgent(customer uuid.UUID, permission auth.Permission) store.Agent {
	h.t.Helper()
	a, err := h.store.CreateAgent(h.t.Context(), store.Operator(), store.NewAgent{
		CustomerID: customer, Username: uuid.NewString(), PasswordHash: tenantHash(), Permission: int64(permission),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

// newBoundKey makes a key of an agent's through the store and returns its token too.
func (h *harness) newBoundKey(a store.Agent) (store.AccessKey, string) {
	h.t.Helper()
	return h.storeKey(store.NewAccessKey{CustomerID: a.CustomerID, AgentID: &a.ID})
}

func (h *harness) storeKey(k store.NewAccessKey) (store.AccessKey, string) {
	h.t.Helper()
	token := auth.NewAccessToken()
	k.TokenHash, k.TokenPrefix, k.Expire = token.Hash(), token.Prefix(), 3600
	key, err := h.store.CreateAccessKey(h.t.Context(), store.Operator(), k)
	if err != nil {
		h.t.Fatal(err)
	}
	return key, token.Reveal()
}

// keyPair is one key pair for all service accounts here: nothing asks for different ones.
var keyPair = sync.OnceValues(func() (secret.Value, auth.PublicKey) {
	pairs, err := auth.NewKeyPairs(1, time.Minute)
	if err != nil {
		panic(err)
	}
	private, public, err := pairs.New(context.Background(), auth.ES256)
	if err != nil {
		panic(err)
	}
	return private, public
})

// program is a service account with a key, and a token that it signed.
type program struct {
	account store.ServiceAccount
	key     store.ServiceAccountKey
	token   string
}

// newProgram makes a service account through the store.
func (h *harness) newProgram(customer uuid.UUID, roles ...auth.Role) program {
	h.t.Helper()
	names := []string{}
	for _, role := range roles {
		names = append(names, string(role))
	}
	account, err := h.store.CreateServiceAccount(h.t.Context(), store.Operator(), store.NewServiceAccount{CustomerID: customer, Roles: names})
	if err != nil {
		h.t.Fatal(err)
	}
	private, public := keyPair()
	key, err := h.store.CreateServiceAccountKey(h.t.Context(), store.Operator(), account, string(public.Algorithm), public.DER)
	if err != nil {
		h.t.Fatal(err)
	}
	credentials := auth.Credentials{AccountID: account.ID.String(), KeyID: key.ID.String(), PrivateKey: private}
	token, err := credentials.Sign(time.Now(), time.Hour, "")
	if err != nil {
		h.t.Fatal(err)
	}
	return program{account: account, key: key, token: token.Reveal()}
}

// caller is a credential of the first customer's, and whom it acts for, if for an agent.
type caller struct {
	bearer string
	agent  store.Agent
	mine   uuid.UUID // a key that is bound to that agent
}

// identity is a kind of caller: a column of the matrix.
type identity struct {
	code string
	make func(h *harness, customer uuid.UUID) caller
}

// agentWith makes an agent who has logged in.
func agentWith(permission auth.Permission) func(*harness, uuid.UUID) caller {
	return func(h *harness, customer uuid.UUID) caller {
		a := h.newAgent(customer, permission)
		key, _ := h.newBoundKey(a)
		return caller{bearer: h.jwtFor(a), agent: a, mine: key.ID}
	}
}

// userKeyWith makes a key that is bound to an agent.
func userKeyWith(permission auth.Permission) func(*harness, uuid.UUID) caller {
	return func(h *harness, customer uuid.UUID) caller {
		c := agentWith(permission)(h, customer)
		_, c.bearer = h.newBoundKey(c.agent)
		return c
	}
}

// accountWith makes a service account.
func accountWith(roles ...auth.Role) func(*harness, uuid.UUID) caller {
	return func(h *harness, customer uuid.UUID) caller {
		return caller{bearer: h.newProgram(customer, roles...).token}
	}
}

func customerKey(h *harness, customer uuid.UUID) caller {
	_, token := h.storeKey(store.NewAccessKey{CustomerID: customer})
	return caller{bearer: token}
}

// identities are all kinds of caller, each permission and role.
func identities() []identity {
	return []identity{
		{"su", agentWith(auth.PermissionProjectSuperAdmin)},
		{"ad", agentWith(auth.PermissionCustomerAdmin)},
		{"ma", agentWith(auth.PermissionCustomerManager)},
		{"ag", agentWith(auth.PermissionCustomerAgent)},
		{"a0", agentWith(auth.PermissionNone)},
		{"ck", customerKey},
		{"ak", userKeyWith(auth.PermissionCustomerAdmin)},
		{"gk", userKeyWith(auth.PermissionCustomerAgent)},
		{"CA", accountWith(auth.RoleCustomerAdmin)},
		{"KA", accountWith(auth.RoleAccessKeyAdmin)},
		{"KV", accountWith(auth.RoleAccessKeyViewer)},
		{"AA", accountWith(auth.RoleAgentAdmin)},
		{"AV", accountWith(auth.RoleAgentViewer)},
		{"N0", accountWith()},
		{"sk", func(h *harness, customer uuid.UUID) caller {
			made := h.post("/v1.0/accesskeys", h.newProgram(customer, auth.RoleAccessKeyAdmin).token, `{}`).wants(200).json()
			return caller{bearer: made["token"].(string)}
		}},
	}
}

// endedIdentities are what is left of callers that have ended: an expired key (ek), a deleted one (dk), an expired one that is bound to an
// admin (eu), a key (xk) and a login token (xj) of a deleted agent, a token of a deleted service account (xs) and by a deleted key of one
// (xt), a key of a deleted customer (xc).
func endedIdentities() []identity {
	// ended is a caller to whom something happens that ends it; $1 is the customer.
	ended := func(of func(*harness, uuid.UUID) caller, sql string) func(*harness, uuid.UUID) caller {
		return func(h *harness, customer uuid.UUID) caller {
			c := of(h, customer)
			h.get("/v1.0/me", c.bearer).wants(200) // the control: it was good before
			h.exec(sql, customer)
			return c
		}
	}
	const expire = `UPDATE accesskeys SET tm_create = now() - interval '1 hour', tm_expire = now() WHERE customer_id = $1`
	const deleteRows = `UPDATE %s SET tm_delete = now() WHERE customer_id = $1`
	return []identity{
		{"ek", ended(customerKey, expire)},
		{"dk", ended(customerKey, fmt.Sprintf(deleteRows, "accesskeys"))},
		{"eu", ended(userKeyWith(auth.PermissionCustomerAdmin), expire)},
		{"xk", ended(userKeyWith(auth.PermissionCustomerAdmin), fmt.Sprintf(deleteRows, "agents"))},
		{"xj", ended(agentWith(auth.PermissionCustomerAdmin), fmt.Sprintf(deleteRows, "agents"))},
		{"xs", ended(accountWith(auth.RoleCustomerAdmin), fmt.Sprintf(deleteRows, "service_accounts"))},
		{"xt", ended(accountWith(auth.RoleCustomerAdmin), `UPDATE service_account_keys SET tm_delete = now()
			WHERE account_id IN (SELECT id FROM service_accounts WHERE customer_id = $1)`)},
		{"xc", ended(customerKey, `UPDATE customers SET tm_delete = now() WHERE id = $1`)},
	}
}

// belongings are what a customer has for others to reach for.
type belongings struct {
	customer, agent, admin, super, key, boundKey, account, accountKey uuid.UUID
}

// absent are the belongings of nobody.
func absent() belongings {
	id := uuid.MustParse(absentID)
	return belongings{id, id, id, id, id, id, id, id}
}

func (h *harness) newBelongings() belongings {
	h.t.Helper()
	c, err := h.store.CreateCustomer(h.t.Context(), store.Operator(), store.NewCustomer{Name: "c"})
	if err != nil {
		h.t.Fatal(err)
	}
	h.newAgent(c.ID, auth.PermissionCustomerAdmin) // so that the admin below is not the last one
	agent := h.newAgent(c.ID, auth.PermissionCustomerAgent)
	key, _ := h.storeKey(store.NewAccessKey{CustomerID: c.ID})
	boundKey, _ := h.newBoundKey(agent)
	p := h.newProgram(c.ID, auth.RoleAgentViewer)
	return belongings{
		customer: c.ID, agent: agent.ID, key: key.ID, boundKey: boundKey.ID, account: p.account.ID, accountKey: p.key.ID,
		admin: h.newAgent(c.ID, auth.PermissionCustomerAdmin).ID,
		super: h.newAgent(c.ID, auth.PermissionProjectSuperAdmin).ID,
	}
}

// fixture is two customers and a caller of the first one's.
type fixture struct {
	own, other belongings
	caller     caller
}

func (h *harness) newFixture(i identity) *fixture {
	h.t.Helper()
	w := &fixture{own: h.newBelongings(), other: h.newBelongings()}
	w.caller = i.make(h, w.own.customer)
	return w
}

// requestOf is what a row of the matrix asks of these belongings.
func (w *fixture) requestOf(r row, b belongings) request {
	agent := map[string]uuid.UUID{
		"-": b.agent, "to-admin": b.agent, "to-super": b.agent, "of": b.agent, "admin": b.admin, "of-admin": b.admin, "super": b.super,
		"of-super": b.super, "mine": w.caller.agent.ID,
	}[r.target]
	permission := map[string]int{"to-admin": 32, "to-super": 1}[r.target]
	key := map[string]uuid.UUID{"-": b.key, "of": b.boundKey, "mine": w.caller.mine}[r.target]
	id := map[string]uuid.UUID{"customers": b.customer, "agents": agent, "accesskeys": key, "service_accounts": b.account}
	noun := strings.Split(r.path, "/")[2]
	req := request{method: r.method, path: strings.NewReplacer(
		"{id}", id[noun].String(), "{key_id}", b.accountKey.String()).Replace(r.path)}
	switch r.method + " " + strings.TrimPrefix(r.path, "/v1.0") {
	case "PUT /me/password":
		req.body = map[string]any{"old_password": tenantPassword, "password": "another"}
	case "POST /customers":
		req.body = map[string]any{"name": "new"}
	case "PUT /customers/{id}", "PUT /accesskeys/{id}", "PUT /service_accounts/{id}", "PUT /agents/{id}":
		req.body = map[string]any{"name": "renamed"}
	case "GET /agents":
		req.path += "?customer_id=" + b.customer.String()
	case "POST /agents":
		req.body = map[string]any{
			"customer_id": b.customer, "username": uuid.NewString(), "password": "p", "permission": permission,
		}
	case "PUT /agents/{id}/permission":
		req.body = map[string]any{"permission": permission}
	case "PUT /agents/{id}/password":
		req.body = map[string]any{"password": "another"}
	case "GET /accesskeys":
		if r.target != "-" {
			req.path += "?agent_id=" + agent.String()
		}
	case "POST /accesskeys":
		if r.target != "-" {
			req.body = map[string]any{"agent_id": agent}
		}
	case "POST /service_accounts/{id}/keys":
		req.body = map[string]any{"algorithm": "EdDSA"}
	}
	if w.caller.bearer != "" {
		req.header = bearing(w.caller.bearer)
	}
	return req
}

// contents is all that the database holds, in one hash.
func contents(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	var hash string
	err := conn.QueryRow(t.Context(), `
		SELECT md5(string_agg(r, '' ORDER BY r)) FROM (
			SELECT customers::text r FROM customers UNION ALL
			SELECT agents::text FROM agents UNION ALL
			SELECT accesskeys::text FROM accesskeys UNION ALL
			SELECT service_accounts::text FROM service_accounts UNION ALL
			SELECT service_account_keys::text FROM service_account_keys
		) AS rows`).Scan(&hash)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}
