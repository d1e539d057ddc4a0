package auth

import "slices"

// Permission is a set of bits of an agent's, as VoIPBIN numbers them.
type Permission int64

// The permissions that this service tells apart. The other bits belong to VoIPBIN; they are kept and shown, and give
// nothing here.
const (
	PermissionNone              Permission = 0x0000
	PermissionProjectSuperAdmin Permission = 0x0001
	PermissionCustomerAgent     Permission = 0x0010
	PermissionCustomerAdmin     Permission = 0x0020
	PermissionCustomerManager   Permission = 0x0040
	PermissionCustomerAll       Permission = 0x00F0
	PermissionAll               Permission = 0xFFFF
)

// namedPermission is a permission with a name of its own.
type namedPermission struct {
	name string
	bit  Permission
}

// namedPermissions begin with the one that has most power.
func namedPermissions() [4]namedPermission {
	return [...]namedPermission{
		{"superadmin", PermissionProjectSuperAdmin},
		{"admin", PermissionCustomerAdmin},
		{"manager", PermissionCustomerManager},
		{"agent", PermissionCustomerAgent},
	}
}

// NamedPermission is the permission of a name (superadmin, admin, manager, agent), false where there is no such name.
func NamedPermission(name string) (Permission, bool) {
	for _, named := range namedPermissions() {
		if named.name == name {
			return named.bit, true
		}
	}
	return PermissionNone, false
}

// Reaches reports whether an agent with these bits has the named permission that is asked for, or one with more power.
func (p Permission) Reaches(asked Permission) bool {
	for _, named := range namedPermissions() {
		if p&named.bit != 0 {
			return true
		}
		if named.bit == asked {
			break
		}
	}
	return false
}

// Role is what a service account may do.
type Role string

// The roles.
const (
	RoleAccessKeyAdmin  Role = "accesskey_admin"
	RoleAccessKeyViewer Role = "accesskey_viewer"
	RoleAgentAdmin      Role = "agent_admin"
	RoleAgentViewer     Role = "agent_viewer"
	RoleCustomerAdmin   Role = "customer_admin"
)

// Rights is a set of things that a caller may do to others; what is its own, it may do without.
type Rights uint16

// The rights, each within the caller's own customer unless it has AllCustomers.
const (
	ReadAccessKeys Rights = 1 << iota
	WriteAccessKeys
	ReadAgents
	WriteAgents
	ReadServiceAccounts
	WriteServiceAccounts
	AllCustomers

	customerRights = AllCustomers - 1 // all that there is within a customer
)

// grant is a line of the permission model.
type grant struct {
	bit  Permission // that gives it to an agent, 0 where none does
	role Role       // that gives it to a service account, "" where none does
	// rights are what it allows.
	rights Rights
	// gives are the bits that its holder may give to an agent, or act through: nobody grants what they lack.
	grantable Permission
}

// permissionModel is all there is to say about who may do what. An agent has the lines of its bits, a service account
// those of its roles, a customer-wide access key the line of customer_admin, a key bound to an agent those of the agent.
func permissionModel() [6]grant {
	const ordinary = PermissionCustomerAgent | PermissionCustomerManager
	return [...]grant{
		{bit: PermissionProjectSuperAdmin, rights: customerRights | AllCustomers, grantable: PermissionAll},
		{bit: PermissionCustomerAdmin, role: RoleCustomerAdmin, rights: customerRights, grantable: PermissionCustomerAll},
		{role: RoleAccessKeyAdmin, rights: ReadAccessKeys | WriteAccessKeys, grantable: ordinary},
		{role: RoleAccessKeyViewer, rights: ReadAccessKeys},
		{role: RoleAgentAdmin, rights: ReadAgents | WriteAgents, grantable: ordinary},
		{role: RoleAgentViewer, rights: ReadAgents},
	}
}

// Roles are all roles, in the order of the model.
func Roles() []Role {
	var roles []Role
	for _, g := range permissionModel() {
		if g.role != "" {
			roles = append(roles, g.role)
		}
	}
	return roles
}

// access is what a caller's lines of the model add up to.
type access struct {
	rights    Rights
	grantable Permission
}

// with is what it becomes by another line of the model.
func (a access) with(g grant) access {
	return access{rights: a.rights | g.rights, grantable: a.grantable | g.grantable}
}

// within is what of it another access has, too.
func (a access) within(b access) access {
	return access{rights: a.rights & b.rights, grantable: a.grantable & b.grantable}
}

func accessOfPermission(p Permission) access {
	var a access
	for _, g := range permissionModel() {
		if p&g.bit != 0 {
			a = a.with(g)
		}
	}
	return a
}

func accessOfRoles(roles []string) access {
	var a access
	for _, g := range permissionModel() {
		if g.role != "" && slices.Contains(roles, string(g.role)) {
			a = a.with(g)
		}
	}
	return a
}
