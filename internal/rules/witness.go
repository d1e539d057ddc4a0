//go:build !without_rule_witness

package rules

// Witness is the rule that a write tests that it reaches the database that this server's heartbeats go to.
const Witness = true
