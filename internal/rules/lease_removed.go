//go:build without_rule_lease

package rules

// Lease is the rule that nothing is answered from memory but under a lease that is tested after the look-up.
const Lease = false
