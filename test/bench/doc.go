// Package bench measures the real server over TCP beside others: its own router without the check of credentials, and
// a bare net/http handler that answers with as many bytes. It has tests only, under the build tag bench; `make bench`
// runs them and docs/performance.md says what they gave.
//
//	goals_test.go     BenchmarkGoals: what the check may cost, with a million keys in the cache
//	depth_test.go     BenchmarkDepth: the list of keys nine million keys down
//	requests_test.go  BenchmarkRequests and BenchmarkFootprint: figures without a goal of their own, and resources
//	tails_test.go     BenchmarkTails: what scripts/tails runs
//	turns_test.go     how servers take turns, so that a noisy neighbour hits all of them
//	openloop_test.go  requests on a schedule, for latencies
//	server_test.go    the server under test
//	others_test.go    the servers beside it
//	seed_test.go      what is in the database
package bench
