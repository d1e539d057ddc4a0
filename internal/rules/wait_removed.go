//go:build without_rule_wait

package rules

// Wait is the rule that a revocation is answered once no replica can be without it.
const Wait = false
