// Package bench measures the real server over TCP beside a bare net/http handler that answers with the same bytes. It
// has tests only; `make bench` runs them, docs/performance.md says what they gave.
package bench
