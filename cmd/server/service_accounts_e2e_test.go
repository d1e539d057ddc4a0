//go:build e2e

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"accesskeys/internal/auth"
	"accesskeys/internal/pgtest"
)

// docs/service-accounts.md shows how to make, use and rotate keys, and how to sign with bash, openssl and jq. Its blocks
// are run as they stand, in one shell, against a server; every curl of it has to be answered with a 200. Its table of
// roles is the code's.
func TestDocumentOnServiceAccountsWorksAsItStands(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"bash", "curl", "openssl", "jq"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing on this machine (make e2e installs it on Debian): %v", tool, err)
		}
	}
	const demo, demoBase = "vb_DemoDemoDemoDemoDemoDemoDemoDemo", "http://127.0.0.1:8080"
	base := served(t, pgtest.Migrated(t), map[string]string{"BOOTSTRAP_ACCESSKEY": demo}).base()
	document := must(os.ReadFile("../../docs/service-accounts.md"))(t)
	for _, role := range auth.Roles() {
		if strings.Count(string(document), "\n| `"+string(role)+"` | ") != 1 {
			t.Errorf("the role %s is not in the table", role)
		}
	}
	if rows := strings.Count(string(document), "\n| `"); rows < len(auth.Roles()) {
		t.Errorf("only %d rows", rows)
	}
	blocks := map[string][]string{}
	for _, match := range regexp.MustCompile("(?ms)^```(\\w+ [\\w.]+)\n(.*?)^```$").FindAllStringSubmatch(string(document), -1) {
		blocks[match[1]] = append(blocks[match[1]], match[2])
	}
	walk := strings.Join(blocks["sh walk"], "")
	if len(blocks["bash sign.sh"]) != 1 || len(blocks["sh walk"]) < 5 || strings.Count(walk, demoBase) != 1 {
		t.Fatalf("the document has other blocks: %d of sign.sh, %d to walk", len(blocks["bash sign.sh"]), len(blocks["sh walk"]))
	}
	program := must(binary())(t)
	folder := newFolder(t)
	ok(t, os.WriteFile(filepath.Join(folder, "sign.sh"), []byte(blocks["bash sign.sh"][0]), 0o600))
	ok(t, os.Mkdir(filepath.Join(folder, "bin"), 0o755))
	ok(t, os.Symlink(program, filepath.Join(folder, "bin", "server")))
	const counting = `curl() { command curl -w '%{stderr}%{http_code}\n' "$@" 2>>statuses; }` + "\n"
	shell := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", counting+strings.Replace(walk, demoBase, base, 1))
	shell.Dir = folder
	out, err := shell.CombinedOutput()
	statuses, statusErr := os.ReadFile(filepath.Join(folder, "statuses"))
	if err != nil || statusErr != nil {
		t.Fatalf("the document's blocks fail: %v\n%s\nstatuses %s", err, out, statuses)
	}
	if calls := strings.Count(walk, "curl -sS"); calls < 10 || string(statuses) != strings.Repeat("200\n", calls) {
		t.Errorf("%d calls were answered with %q", calls, statuses)
	}
	if n := strings.Count(string(out), `"type":"service_account"`); n != 5 {
		t.Errorf("%d answers tell of a service account:\n%s", n, out)
	}
	if strings.Contains(string(out), "PRIVATE KEY") {
		t.Error("following the document shows a private key")
	}
	for _, name := range []string{"credentials.json", "own.pem", "own-credentials.json", "new.json"} {
		if info, err := os.Stat(filepath.Join(folder, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	call(t, "GET", base+"/v1.0/me", strings.Repeat("x", 20), "").refuses(t, 401, "INVALID_CREDENTIALS")
}
