//go:build without_rule_log

package rules

// Log is the rule that a change to what verification reads is in the log of changes.
const Log = false
