//go:build !without_rule_proof

package rules

// Proof is the rule that a refusal that rests on a row, or on its absence, is proven by a heartbeat.
const Proof = true
