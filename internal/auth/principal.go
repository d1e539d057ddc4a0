// Package auth decides who is calling: it makes and reads credentials, verifies them against the store, hashes
// passwords, and knows what a permission allows.
package auth

import (
	"time"

	"github.com/google/uuid"
)

// PrincipalType is the kind of a caller, as GET /v1.0/me names it.
type PrincipalType string

// The kinds of caller.
const (
	TypeAgent     PrincipalType = "agent"
	TypeAccessKey PrincipalType = "accesskey"
)

// Principal is a caller whose credential was verified, as the store had it at that moment.
type Principal struct {
	Type       PrincipalType
	ID         uuid.UUID // the agent's or the access key's own
	CustomerID uuid.UUID
	Username   string // "" for an access key
	Name       string
	Detail     string
	Permission Permission
	TmCreate   time.Time
	TmUpdate   time.Time
	TmDelete   time.Time
}

// MayManageAccessKeys reports whether the caller may manage access keys at all (contract, section 4); whose, is
// MayReach's business.
func (p Principal) MayManageAccessKeys() bool {
	return p.Permission.HasAny(PermissionCustomerAdmin | PermissionProjectSuperAdmin)
}

// MaySeeAllCustomers reports whether the caller's reach is not limited to its own customer.
func (p Principal) MaySeeAllCustomers() bool {
	return p.Permission.HasAny(PermissionProjectSuperAdmin)
}

// MayReach reports whether things of this customer's are within the caller's reach.
func (p Principal) MayReach(customerID uuid.UUID) bool {
	return p.CustomerID == customerID || p.MaySeeAllCustomers()
}
