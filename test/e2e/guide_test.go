//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/servertest"
)

// guideLines are what a README has people paste: its blocks that begin with ```sh guide, as they stand.
func guideLines(t testing.TB, path string) string {
	t.Helper()
	var lines strings.Builder
	for _, block := range strings.Split(example(t, path), "```sh guide\n")[1:] {
		code, _, closed := strings.Cut(block, "\n```")
		if !closed {
			t.Fatalf("a block of %s does not end", path)
		}
		lines.WriteString(code + "\n")
	}
	return lines.String()
}

// A machine of its own for a guide: folders that it writes to are copies or empty, and nobody else is on its network. It ends with
// its first process.
const guideMachine = `set -e
ip link set lo up
mkdir etc
cp -a /etc/. etc
mount --bind etc /etc
for folder in /srv /var/lib /var/log /run; do mount -t tmpfs -o mode=755 tmpfs $folder; done
mkdir /var/lib/nginx /var/log/nginx
cd repository
bash <../guide.sh
`

// TestNginxGuideProtectsAFolder pastes the guide's lines into a shell.
func TestNginxGuideProtectsAFolder(t *testing.T) {
	lines := guideLines(t, "nginx/README.md")
	dir := folder(t)
	servertest.OK(t, os.MkdirAll(filepath.Join(dir, "repository/bin"), 0o755),
		os.Symlink(binary, filepath.Join(dir, "repository/bin/server")),
		os.Symlink(absolute(t, "../../examples"), filepath.Join(dir, "repository/examples")))
	const page = "http://localhost/files/hello.txt"
	status := func(what, arguments string) string {
		return fmt.Sprintf("echo \"%s: $(curl -sS -o /dev/null -w '%%{http_code}' %s)\"\n", what, arguments)
	}
	write(t, filepath.Join(dir, "machine.sh"), guideMachine)
	write(t, filepath.Join(dir, "guide.sh"), lines+"echo the guide ends here\n"+
		// What else should be so then.
		status("deleted, in a link", `"`+page+`?accesskey=$KEY"`)+
		status("the admin's key", `"`+page+`?accesskey=$BOOTSTRAP_ACCESSKEY"`)+
		status("the published key", page+" -H 'Authorization: Bearer vb_DemoDemoDemoDemoDemoDemoDemoDemo'")+
		status("another site", "-H 'Host: elsewhere' http://localhost/")+
		"stat -c 'secrets: %a' /etc/accesskeys.env\n"+
		"grep -rlF \"${KEY:11}\" /var/log /etc; grep -rlF \"${BOOTSTRAP_ACCESSKEY:11}\" /var/log; echo 'logs: searched'\n"+
		"kill %1; wait %1\n"+
		status("stopped", page+` -H "Authorization: Bearer $BOOTSTRAP_ACCESSKEY"`))
	arguments := []string{"unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
		"bash", filepath.Join(dir, "machine.sh")}
	if os.Geteuid() != 0 {
		arguments = append([]string{"sudo", "-n"}, arguments...)
	}
	before := machineFiles(t)
	cmd := exec.Command(arguments[0], arguments[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "HOME=/root"}
	began := time.Now()
	p := servertest.Start(t, "guide", cmd)
	var took time.Duration
	servertest.Eventually(t, "the guide has ended", func() bool {
		output, err := os.ReadFile(p.Log)
		if err == nil && took == 0 && strings.Contains(string(output), "the guide ends here\n") {
			took = time.Since(began)
		}
		return !p.Running()
	})
	output, err := os.ReadFile(p.Log)
	if err != nil || p.Err != nil || took == 0 {
		t.Fatalf("%v, %v:\n%s", err, p.Err, output)
	}
	shown, after, _ := strings.Cut(string(output), "the guide ends here\n")
	statuses := regexp.MustCompile(`(?m)^HTTP/1.1 \d+`).FindAllString(shown, -1)
	want := []string{"HTTP/1.1 401", "HTTP/1.1 200", "HTTP/1.1 200", "HTTP/1.1 401"}
	if !slices.Equal(statuses, want) || strings.Count(shown, "\nfor those with a key\n") != 2 {
		t.Errorf("the guide's requests were answered with %q:\n%s", statuses, shown)
	}
	const wanted = "deleted, in a link: 401\nthe admin's key: 200\nthe published key: 401\nanother site: 200\n" +
		"secrets: 600\nlogs: searched\nstopped: 503\n"
	if after != wanted {
		t.Errorf("after the guide:\n%s", after)
	}
	if files := machineFiles(t); files != before {
		t.Errorf("the guide has left something:\n%s\nwhere there was\n%s", files, before)
	}
	counted(t, "the guide of examples/nginx, pasted", version(t, "nginx", "-v"), "%d lines in %.1f s",
		strings.Count(lines, "\n"), took.Seconds())
}

// machineFiles is what there is on the real machine where the guide writes.
func machineFiles(t testing.TB) string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/etc/accesskeys.env", "/etc/nginx/conf.d/*", "/srv/*", "/var/lib/accesskeys", "/var/log/accesskeys*",
		"/run/nginx.pid"} {
		found = append(found, servertest.Must(filepath.Glob(pattern))(t)...)
	}
	return strings.Join(found, " ")
}
