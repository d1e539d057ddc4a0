package auth

import (
	"slices"
	"testing"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

// Contract, section 4: Needs the permission CustomerAdmin (32) or ProjectSuperAdmin (1); contract 5: "a list of the customers that the
// caller may see (its own; ProjectSuperAdmin: all)". Every single bit of a permission is tried, so that no other bit gives anything.
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
		p := principalOfAgent(store.Agent{CustomerID: own, Permission: int64(permission)})
		for what, check := range map[string]struct{ got, want bool }{
			"May write keys":            {p.May(WriteAccessKeys), admin || super},
			"May do all within":         {p.May(customerRights), admin || super},
			"May see all customers":     {p.May(AllCustomers), super},
			"CanAccessCustomer its own": {p.CanAccessCustomer(own), true},
			"CanAccessCustomer another": {p.CanAccessCustomer(other), super},
			"CanGrant nothing":          {p.CanGrant(PermissionNone), true},
			"CanGrant an agent's":       {p.CanGrant(PermissionCustomerAgent), admin || super},
			"CanGrant an admin's":       {p.CanGrant(PermissionCustomerAdmin), admin || super},
			"CanGrant a super's":        {p.CanGrant(PermissionProjectSuperAdmin), super},
			"CanGrant an unknown bit":   {p.CanGrant(0x0100), super},
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
	got := []Permission{PermissionNone, PermissionProjectSuperAdmin, PermissionCustomerAgent, PermissionCustomerAdmin, PermissionCustomerManager}
	if want := []Permission{0, 1, 16, 32, 64}; !slices.Equal(got, want) {
		t.Errorf("permissions %d, want %d", got, want)
	}
}

// Each role gives its rights and no more, customer_admin gives all of them.
func TestRolesGiveTheirRightsAndNoMore(t *testing.T) {
	t.Parallel()
	for role, want := range map[Role]Rights{
		RoleAccessKeyAdmin: ReadAccessKeys | WriteAccessKeys, RoleAccessKeyViewer: ReadAccessKeys,
		RoleAgentAdmin: ReadAgents | WriteAgents, RoleAgentViewer: ReadAgents,
		RoleCustomerAdmin: customerRights, "": 0, "superadmin": 0,
	} {
		p := principalOfServiceAccount(store.ServiceAccountCredential{Account: store.ServiceAccount{Roles: []string{string(role)}}})
		if p.access.rights != want {
			t.Errorf("%q gives %b, want %b", role, p.access.rights, want)
		}
		if admin := role == RoleCustomerAdmin; p.CanGrant(PermissionCustomerAdmin) != admin || (p.Permission == PermissionCustomerAdmin) != admin {
			t.Errorf("%q may give the admin's bit: %t; permission %d", role, p.CanGrant(PermissionCustomerAdmin), p.Permission)
		}
	}
	if len(Roles()) != 5 {
		t.Errorf("the roles are %v", Roles())
	}
}

// superadmin has more power than admin, admin than manager, manager than agent; no other bit gives any, and no other name is one.
func TestPermissionReachesWhatHasLessPower(t *testing.T) {
	t.Parallel()
	order := []string{"agent", "manager", "admin", "superadmin"} // from least to most
	bits := []Permission{16, 64, 32, 1}
	var named Permission
	for at, name := range order {
		if bit, ok := NamedPermission(name); !ok || bit != bits[at] {
			t.Errorf("%s is %d, %t, want %d", name, bit, ok, bits[at])
		}
		named |= bits[at]
	}
	for _, name := range []string{"", "Admin", "ADMIN", "admin ", " admin", "admins", "root", "none", "all", "customer_admin", "32", "admin,agent"} {
		if bit, ok := NamedPermission(name); ok || bit != PermissionNone {
			t.Errorf("%q is %d, %t", name, bit, ok)
		}
	}
	for asked, bit := range bits {
		for mask := range Permission(1 << 4) { // every set of the four
			var held Permission
			most := -1
			for at, one := range bits {
				if mask&(1<<at) != 0 {
					held |= one
					most = max(most, at)
				}
			}
			for _, others := range []Permission{0, PermissionAll &^ named, ^named} {
				if got, want := (held | others).Reaches(bit), most >= asked; got != want {
					t.Errorf("%#x reaches %s: %t, want %t", int64(held|others), order[asked], got, want)
				}
			}
		}
	}
}
