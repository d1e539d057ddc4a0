// Package auth decides who is calling: it makes and reads credentials, verifies them against the store, hashes
// passwords, and knows what a permission allows.
package auth

import (
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
}

// May reports whether the caller has all of these rights.
func (p Principal) May(rights Rights) bool { return p.access.rights&rights == rights }

// MayReach reports whether things of this customer's are within the caller's reach.
func (p Principal) MayReach(customerID uuid.UUID) bool {
	return p.CustomerID == customerID || p.May(AllCustomers)
}

// MayGive reports whether the caller may give an agent these bits, or take over from one that has them. Otherwise a
// password, or a key bound to a more powerful agent, would be a way up.
func (p Principal) MayGive(permission Permission) bool { return permission&^p.access.gives == 0 }

// Acts reports whether the caller is this agent, itself or by a key bound to it.
func (p Principal) Acts(agentID uuid.UUID) bool { return agentID != uuid.Nil && p.AgentID == agentID }

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
	}
}

// principalOfAccessKey is a customer-wide key, or one that acts with the permission of the agent that it is bound to.
func principalOfAccessKey(k store.AccessKeyCredential, bound store.Agent) Principal {
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
	}
	if k.AgentID != nil {
		p.AgentID = *k.AgentID
		p.Permission = Permission(bound.Permission)
		p.access = accessOfPermission(p.Permission)
		return p
	}
	return p.withRoles(k.Roles)
}

// principalOfServiceAccount is an account that has signed a token.
func principalOfServiceAccount(a store.ServiceAccount) Principal {
	return Principal{
		Type:       TypeServiceAccount,
		ID:         a.ID,
		CustomerID: a.CustomerID,
		Name:       a.Name,
		Detail:     a.Detail,
		TmCreate:   a.TmCreate,
		TmUpdate:   a.TmUpdate,
		TmDelete:   a.TmDelete,
	}.withRoles(a.Roles)
}

// during says from when to when the credential is good, in seconds since 1970.
func (p Principal) during(issued, expires int64) Principal {
	p.Issued, p.Expires = time.Unix(issued, 0), time.Unix(expires, 0)
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
