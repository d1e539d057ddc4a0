// Package rules names rules that revocation rests on (docs/revocation.md). Each is in force unless the program is
// built with the tag that removes it, which `make chaos` does to show that its checker would notice. SECURITY: no
// such build is to be used for anything else.
package rules
