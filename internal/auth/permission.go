package auth

// Permission is a set of rights, in VoIPBIN's bits.
type Permission int64

// The permissions that this service tells apart. The other bits belong to VoIPBIN; they are kept and shown, and give
// nothing here.
const (
	PermissionNone              Permission = 0
	PermissionProjectSuperAdmin Permission = 1  // all customers
	PermissionCustomerAgent     Permission = 16 // itself
	PermissionCustomerAdmin     Permission = 32 // all of its customer
	PermissionCustomerManager   Permission = 64
)

// HasAny reports whether p has at least one bit of wanted.
func (p Permission) HasAny(wanted Permission) bool { return p&wanted != 0 }
