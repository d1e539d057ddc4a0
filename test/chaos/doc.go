// Package chaos checks on real servers, while it breaks what they stand on, that a credential is accepted nowhere once
// its revocation was confirmed. It has tests only: a short form among all the others, a long one by `make chaos`.
package chaos
