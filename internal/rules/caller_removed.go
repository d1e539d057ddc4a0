//go:build without_rule_caller

package rules

// Caller is the rule that a write commits only while its caller may still make it.
const Caller = false
