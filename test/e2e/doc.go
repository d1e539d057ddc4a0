// Package e2e runs the server together with the programs that people run it with: their proxies, their poolers, their
// Postgres with its standbys, as the configurations in examples have it. It has tests only, under the build tag e2e; `make
// e2e` installs what they need.
package e2e
