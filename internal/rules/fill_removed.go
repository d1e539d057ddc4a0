//go:build without_rule_fill

package rules

// Fill is the rule that what was read before a change is not remembered after it.
const Fill = false
