package store

// The most that texts may have, in characters. The schema has the same.
const (
	MaxName     = 255
	MaxDetail   = 4096
	MaxUsername = 255
)

// An access key's expire in seconds (contract, section 4). A year has 365 days here.
const (
	DefaultExpire = 365 * 86400
	MaxExpire     = 100 * DefaultExpire
)
