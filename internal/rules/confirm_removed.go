//go:build without_rule_confirm

package rules

// Confirm is the rule that a commit whose wait for the standby was cut short counts for nothing.
const Confirm = false
