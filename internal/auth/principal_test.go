package auth

import (
	"testing"

	"github.com/google/uuid"
)

// Contract 4: "Needs the permission CustomerAdmin (32) or ProjectSuperAdmin (1)"; contract 5: "a list of the customers
// that the caller may see (its own; ProjectSuperAdmin: all)". Every single bit of a permission is tried, so that no
// other bit gives anything.
func TestOnlyAdminsManageKeysAndOnlySuperAdminsReachOtherCustomers(t *testing.T) {
	t.Parallel()
	own, other := uuid.New(), uuid.New()
	permissions := []Permission{
		PermissionNone, PermissionCustomerAdmin | PermissionProjectSuperAdmin, PermissionCustomerAdmin | PermissionCustomerManager,
		PermissionCustomerAgent | PermissionCustomerManager, ^(PermissionCustomerAdmin | PermissionProjectSuperAdmin), -1,
	}
	for bit := range 63 {
		permissions = append(permissions, 1<<bit)
	}
	for _, permission := range permissions {
		admin, super := permission&32 != 0, permission&1 != 0
		p := Principal{CustomerID: own, Permission: permission}
		for what, check := range map[string]struct{ got, want bool }{
			"MayManageAccessKeys": {p.MayManageAccessKeys(), admin || super},
			"MaySeeAllCustomers":  {p.MaySeeAllCustomers(), super},
			"MayReach its own":    {p.MayReach(own), true},
			"MayReach another":    {p.MayReach(other), super},
		} {
			if check.got != check.want {
				t.Errorf("permission %d: %s is %t, want %t", permission, what, check.got, check.want)
			}
		}
	}
}

// VoIPBIN's numbers are on the wire and in its databases: contract 4 and 5 name them.
func TestPermissionsAreVoIPBINsBits(t *testing.T) {
	t.Parallel()
	for permission, want := range map[Permission]int64{
		PermissionNone: 0, PermissionProjectSuperAdmin: 1, PermissionCustomerAgent: 16, PermissionCustomerAdmin: 32,
		PermissionCustomerManager: 64,
	} {
		if int64(permission) != want {
			t.Errorf("permission %d, want %d", permission, want)
		}
	}
	for _, c := range []struct {
		has, wanted Permission
		want        bool
	}{{0, 0, false}, {0, 1, false}, {1, 0, false}, {1, 1, true}, {48, 32, true}, {48, 1, false}, {16, 48, true}} {
		if got := c.has.HasAny(c.wanted); got != c.want {
			t.Errorf("%d.HasAny(%d) = %t, want %t", c.has, c.wanted, got, c.want)
		}
	}
}
