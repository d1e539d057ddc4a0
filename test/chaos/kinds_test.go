package chaos

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/secret"
)

// kind is a way in which a credential ends.
type kind int

const (
	keyDeleted kind = iota
	agentDeleted
	permissionTaken
	passwordChanged
	accountKeyDeleted
	accountDeleted
	customerDeleted
	kinds
)

func (k kind) String() string {
	return [...]string{"key", "agent", "permission", "password", "account key", "account", "customer"}[k]
}

// share is how many of a hundred revocations are of a kind. What needs a password hashed takes a core for a while.
func (k kind) share() int { return [...]int{76, 4, 3, 2, 7, 6, 2}[k] }

// kindOf spreads the kinds evenly: the i-th revocation of every hundred is always of the same one.
func kindOf(i int) kind {
	i = i * 37 % 100
	for k := range kinds {
		if i -= k.share(); i < 0 {
			return k
		}
	}
	return keyDeleted
}

// victim is a credential that will be revoked.
type victim struct {
	kind    kind
	path    string // a GET that it may do
	bearer  string
	bind    string // what a key that it makes has to be bound to, as a member of the body
	refused int    // how the GET is answered after the revocation
	// what revokes it
	method string
	target string
	by     string
	body   string
}

const me = "/v1.0/me"

// slow bounds how many passwords are hashed at once, which servers refuse beyond a bound of theirs.
type slow chan struct{}

func (s slow) do(f func() error) error {
	s <- struct{}{}
	defer func() { <-s }()
	return f()
}

type made struct {
	ID       string `json:"id"`
	Token    string `json:"token"`
	Username string `json:"username"`
}

// make has a credential of this kind made, by whichever instances. An error is of no consequence: no promise was made.
func (c *checker) make(ctx context.Context, k kind) (v *victim, err error) {
	v = &victim{kind: k, path: me, refused: http.StatusUnauthorized, method: http.MethodDelete, by: adminKey}
	var agent, account made
	switch k {
	case keyDeleted:
		return v, c.makeKey(ctx, v)
	case agentDeleted, permissionTaken, passwordChanged:
		permission := auth.PermissionCustomerAgent
		if k == permissionTaken {
			permission = auth.PermissionCustomerAdmin
		}
		if agent, err = c.agent(ctx, adminKey, "", permission); err != nil {
			return nil, err
		}
		v.target = "/v1.0/agents/" + agent.ID
	case accountKeyDeleted, accountDeleted:
		if account, err = c.post(ctx, "/v1.0/service_accounts", adminKey, `{"roles":["accesskey_admin"]}`); err != nil {
			return nil, err
		}
		v.target = "/v1.0/service_accounts/" + account.ID
	default: // a customer is another matter
	}
	switch k {
	case agentDeleted:
		err = c.keyOf(ctx, adminKey, agent, v)
	case permissionTaken: // the agent will live on, and may then no longer do what it could
		v.path, v.refused = "/v1.0/service_accounts?page_size=1", http.StatusForbidden
		v.method, v.target = http.MethodPut, v.target+"/permission"
		v.body = fmt.Sprintf(`{"permission":%d}`, auth.PermissionCustomerAgent)
		err = c.keyOf(ctx, adminKey, agent, v)
		v.bind = "" // which it may not do any more, while it may bind a key to itself
	case passwordChanged:
		v.method, v.target, v.body = http.MethodPut, v.target+"/password", `{"password":"another-password"}`
		err = c.slow.do(func() error {
			login, err := c.post(ctx, "/auth/login", "", `{"username":"`+agent.Username+`","password":"`+adminPassword+`"}`)
			v.bearer, v.bind = login.Token, `,"agent_id":"`+agent.ID+`"`
			return err
		})
	case accountKeyDeleted:
		var keyID string
		keyID, err = c.signed(ctx, account, v)
		v.target += "/keys/" + keyID
	case accountDeleted:
		_, err = c.signed(ctx, account, v)
	default:
		err = c.makeCustomersKey(ctx, v)
	}
	return v, err
}

func (c *checker) post(ctx context.Context, path, bearer, body string) (got made, err error) {
	return got, c.pick().call(ctx, http.MethodPost, path, bearer, body).into(&got)
}

func (c *checker) makeKey(ctx context.Context, v *victim) error {
	key, err := c.post(ctx, "/v1.0/accesskeys", adminKey, `{"name":"chaos","expire":3600}`)
	v.bearer, v.target = key.Token, "/v1.0/accesskeys/"+key.ID
	return err
}

// agent makes one with this permission and a password that is adminPassword.
func (c *checker) agent(ctx context.Context, by, customer string, permission auth.Permission) (agent made, err error) {
	of := ""
	if customer != "" {
		of = `,"customer_id":"` + customer + `"`
	}
	err = c.slow.do(func() error {
		agent, err = c.post(ctx, "/v1.0/agents", by,
			fmt.Sprintf(`{"username":"%s@chaos.example","password":"%s","permission":%d%s}`, rand.Text(), adminPassword, permission, of))
		return err
	})
	return agent, err
}

func (c *checker) keyOf(ctx context.Context, by string, agent made, v *victim) error {
	key, err := c.post(ctx, "/v1.0/accesskeys", by, `{"agent_id":"`+agent.ID+`"}`)
	v.bearer, v.bind = key.Token, `,"agent_id":"`+agent.ID+`"`
	return err
}

// signed adds a key pair to an account and signs a token with it.
func (c *checker) signed(ctx context.Context, account made, v *victim) (keyID string, err error) {
	var file struct {
		AccountID  string `json:"account_id"`
		KeyID      string `json:"key_id"`
		PrivateKey string `json:"private_key"`
	}
	a := c.pick().call(ctx, http.MethodPost, "/v1.0/service_accounts/"+account.ID+"/keys", adminKey, `{"algorithm":"`+string(auth.EdDSA)+`"}`)
	if err := a.into(&file); err != nil {
		return "", err
	}
	credentials := auth.Credentials{AccountID: file.AccountID, KeyID: file.KeyID, PrivateKey: secret.New(file.PrivateKey)}
	token, err := credentials.Sign(time.Now(), time.Hour, "")
	v.bearer = token.Reveal()
	return file.KeyID, err
}

func (c *checker) makeCustomersKey(ctx context.Context, v *victim) error {
	customer, err := c.post(ctx, "/v1.0/customers", c.fleet.root, `{"name":"for a while"}`)
	if err != nil {
		return err
	}
	agent, err := c.agent(ctx, c.fleet.root, customer.ID, auth.PermissionCustomerAdmin)
	if err != nil {
		return err
	}
	v.target, v.by = "/v1.0/customers/"+customer.ID, c.fleet.root
	return c.keyOf(ctx, c.fleet.root, agent, v)
}
