// Package auth decides who is calling: it makes and reads credentials, verifies them against the store, hashes
// passwords, and knows what a permission allows.
package auth

import (
	"slices"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

// PrincipalType is the kind of a caller, as GET /v1.0/me names it.
type PrincipalType string

// The kinds of caller.
const (
	TypeAgent          PrincipalType = "agent"
	TypeAccessKey      PrincipalType = "accesskey"
	TypeServiceAccount PrincipalType = "service_account"
)

// Principal is a caller whose credential was verified, as the store had it at that moment.
type Principal struct {
	Type       PrincipalType
	ID         uuid.UUID // the agent's, the access key's or the service account's own
	CustomerID uuid.UUID
	AgentID    uuid.UUID // who is acting: an agent itself, or the one that a key is bound to; else the nil UUID
	Username   string    // "" but for an agent
	Name       string
	Detail     string
	Permission Permission
	Roles      []string // of a service account, or of a key that one made
	TmCreate   time.Time
	TmUpdate   time.Time
	TmDelete   time.Time
	Issued     time.Time // when the credential was made
	Expires    time.Time // when it ends by itself

	access access
	own    Rights // over the access keys that are bound to AgentID
	// What else the credential rests on, which Caller tells the store.
	tmPassword     time.Time             // of an agent that has logged in
	roles          []string              // of an access key, as it was made with
	agentHas       int64                 // the permission of the agent that a key is bound to, whatever bounds the key
	maker          *store.ServiceAccount // that made an access key
	accountKeyID   uuid.UUID             // that a service account's token was signed with
	acceptedBefore time.Time             // the end of a token, with the skew that is allowed
}

// Caller is the principal as writes are given it: they commit only while what its credential rests on stays as it was.
func (p Principal) Caller() store.Caller {
	switch p.Type {
	case TypeAgent:
		agent := store.Agent{ID: p.ID, CustomerID: p.CustomerID, Permission: int64(p.Permission), TmPassword: p.tmPassword}
		return store.AgentCaller(agent, p.acceptedBefore)
	case TypeAccessKey:
		key := store.AccessKeyCredential{Roles: p.roles, ServiceAccount: p.maker}
		key.ID, key.CustomerID = p.ID, p.CustomerID
		if p.AgentID != uuid.Nil {
			key.Agent = &store.Agent{ID: p.AgentID, Permission: p.agentHas}
		}
		return store.AccessKeyCaller(key)
	default:
		var account store.ServiceAccountCredential
		account.Key.ID, account.Account.ID, account.Account.CustomerID, account.Account.Roles = p.accountKeyID, p.ID, p.CustomerID, p.Roles
		return store.ServiceAccountCaller(account, p.acceptedBefore)
	}
}

// May reports whether the caller has all of these rights.
func (p Principal) May(rights Rights) bool { return p.access.rights&rights == rights }

// CanAccessCustomer reports whether things of this customer's are within the caller's reach.
func (p Principal) CanAccessCustomer(customerID uuid.UUID) bool {
	return p.CustomerID == customerID || p.May(AllCustomers)
}

// CanGrant reports whether the caller may give an agent these bits, or take over from one that has them. Otherwise a
// password, or a key bound to a more powerful agent, would be a way up.
func (p Principal) CanGrant(permission Permission) bool { return permission&^p.access.grantable == 0 }

// ActsAs reports whether the caller is this agent, itself or by a key bound to it, and may do this to the access keys that are bound to
// the agent. Every agent may, and every key of its, unless a service account made the key: then it has no rights that the account
// lacks.
func (p Principal) ActsAs(agentID uuid.UUID, rights Rights) bool {
	return agentID != uuid.Nil && p.AgentID == agentID && p.own&rights == rights
}

// principalOfAgent is an agent that has logged in.
func principalOfAgent(a store.Agent) Principal {
	permission := Permission(a.Permission)
	return Principal{
		Type:       TypeAgent,
		ID:         a.ID,
		CustomerID: a.CustomerID,
		AgentID:    a.ID,
		Username:   a.Username,
		Name:       a.Name,
		Detail:     a.Detail,
		Permission: permission,
		TmCreate:   a.TmCreate,
		TmUpdate:   a.TmUpdate,
		TmDelete:   a.TmDelete,
		access:     accessOfPermission(permission),
		own:        ReadAccessKeys | WriteAccessKeys,
		tmPassword: a.TmPassword,
	}
}

// principalOfAccessKey is a customer-wide key, or one that acts with the permission of the agent that it is bound to. A key that a
// service account made has no rights that the account lacks now.
func principalOfAccessKey(k store.AccessKeyCredential) Principal {
	p := Principal{
		Type:       TypeAccessKey,
		ID:         k.ID,
		CustomerID: k.CustomerID,
		Name:       k.Name,
		Detail:     k.Detail,
		TmCreate:   k.TmCreate,
		TmUpdate:   k.TmUpdate,
		TmDelete:   k.TmDelete,
		Issued:     k.TmCreate,
		Expires:    k.TmExpire,
		roles:      k.Roles,
		maker:      k.ServiceAccount,
	}
	if k.Agent == nil {
		roles := k.Roles
		if k.ServiceAccount != nil {
			roles = commonRoles(roles, k.ServiceAccount.Roles)
		}
		return p.withRoles(roles)
	}
	p.AgentID, p.agentHas = k.Agent.ID, k.Agent.Permission
	p.Permission = Permission(k.Agent.Permission)
	p.access = accessOfPermission(p.Permission)
	p.own = ReadAccessKeys | WriteAccessKeys
	if k.ServiceAccount != nil {
		bound := accessOfRoles(k.ServiceAccount.Roles)
		p.own &= bound.rights
		p.Permission &= bound.grantable
		p.access = accessOfPermission(p.Permission).within(bound)
	}
	return p
}

// commonRoles are the roles of one list that the other amounts to, and the other way round.
func commonRoles(a, b []string) []string {
	common := []string{}
	add := func(roles, others []string) {
		all := accessOfRoles(others)
		for _, role := range roles {
			if one := accessOfRoles([]string{role}); one == one.within(all) && !slices.Contains(common, role) {
				common = append(common, role)
			}
		}
	}
	add(a, b)
	add(b, a)
	return common
}

// principalOfServiceAccount is an account that has signed a token.
func principalOfServiceAccount(c store.ServiceAccountCredential) Principal {
	a := c.Account
	return Principal{
		Type:       TypeServiceAccount,
		ID:         a.ID,
		CustomerID: a.CustomerID,
		Name:       a.Name,
		Detail:     a.Detail,
		TmCreate:   a.TmCreate,
		TmUpdate:   a.TmUpdate,
		TmDelete:   a.TmDelete,

		accountKeyID: c.Key.ID,
	}.withRoles(a.Roles)
}

// during says from when to when the credential is good, in seconds since 1970.
func (p Principal) during(issued, expires int64) Principal {
	p.Issued, p.Expires = time.Unix(issued, 0), time.Unix(expires, 0)
	p.acceptedBefore = p.Expires
	return p
}

// withRoles gives a caller that is no agent its rights. Its permission shows the bits that its roles amount to.
func (p Principal) withRoles(roles []string) Principal {
	p.Roles = roles
	p.access = accessOfRoles(roles)
	if p.May(customerRights) {
		p.Permission = PermissionCustomerAdmin // contract, section 4: "acts as CustomerAdmin"
	}
	return p
}
