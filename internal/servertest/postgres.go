package servertest

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// PostgresProgram is the path of one of PostgreSQL's programs: Debian's newest, or else the one in PATH.
func PostgresProgram(t testing.TB, name string) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name) // in the order of the versions
	if len(found) > 0 {
		return found[len(found)-1]
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: it comes with PostgreSQL (apt-get install postgresql)", err)
	}
	return path
}
