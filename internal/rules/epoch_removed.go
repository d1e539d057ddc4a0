//go:build without_rule_epoch

package rules

// Epoch is the rule that a database that was put back or replaced makes an instance forget everything.
const Epoch = false
