//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"accesskeys/internal/servertest"
)

// oapiCodegen is VoIPBIN's own tool. It is run beside our go.mod; testdata/clients/go/go.mod pins what its code imports.
const oapiCodegen = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"

// description is the document that the server serves.
const description = "../../api/openapi.yaml"

// runIn runs a program in a folder and returns its standard output. A program that fails ends the test.
func runIn(t testing.TB, dir string, env []string, program string, arguments ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, arguments...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var failed strings.Builder
	cmd.Stderr = &failed
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(arguments, " "), err, output, failed.String())
	}
	return strings.TrimSpace(string(output))
}

// copied is a copy of a folder below testdata/clients.
func copied(t testing.TB, name string) string {
	t.Helper()
	dir := folder(t)
	servertest.OK(t, os.CopyFS(dir, os.DirFS(filepath.Join("testdata/clients", name))))
	return dir
}

// installedPackages is a copy of testdata/clients/typescript with what its package-lock.json pins, installed once for all tests. Nothing
// that the packages bring runs while they are installed.
var installedPackages = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(filepath.Dir(binary), "typescript")
	if err := os.CopyFS(dir, os.DirFS("testdata/clients/typescript")); err != nil {
		return "", err
	}
	cmd := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	return dir, cmd.Run()
})

func packages(t testing.TB) (dir string) {
	t.Helper()
	return servertest.Must(installedPackages())(t) // by npm, which make e2e installs
}

func absolute(t testing.TB, path string) string {
	t.Helper()
	return servertest.Must(filepath.Abs(path))(t)
}

// servesClient runs a client that makes, uses, lists and deletes a key, and sees that the server accepts that key no longer.
func servesClient(t *testing.T, dir, program string, arguments ...string) {
	t.Helper()
	s := newServer(t, newDatabase(t))
	token := runIn(t, dir, []string{"BASE_URL=" + s.url(""), "CLIENT_USERNAME=" + adminName, "CLIENT_PASSWORD=" + adminPassword}, program, arguments...)
	if status := s.me(token); !strings.HasPrefix(token, "vb_") || status != http.StatusUnauthorized {
		t.Errorf("the key that the client made and deleted is answered with %d", status)
	}
	if keys := s.keys(t); len(keys) != 1 {
		t.Errorf("the client left %v", keys)
	}
}

func TestClientOfOapiCodegenWorks(t *testing.T) {
	t.Parallel()
	dir := copied(t, "go")
	servertest.OK(t, os.Mkdir(filepath.Join(dir, "api"), 0o755))
	runIn(t, dir, nil, "go", "run", oapiCodegen, "-package", "api", "-o", "api/api.go", absolute(t, description))
	runIn(t, dir, nil, "go", "build", "-buildvcs=false", "-o", "client", ".")
	servesClient(t, dir, filepath.Join(dir, "client"))
	_, tag, _ := strings.Cut(oapiCodegen, "@v")
	counted(t, "a client in Go, generated and compiled", "oapi-codegen "+tag, "a key made, used, listed and deleted")
}

func TestClientOfOpenAPITypeScriptWorks(t *testing.T) {
	t.Parallel()
	dir := packages(t)
	bin := filepath.Join(dir, "node_modules/.bin")
	runIn(t, dir, nil, filepath.Join(bin, "openapi-typescript"), absolute(t, description), "-o", "api.d.ts")
	runIn(t, dir, nil, filepath.Join(bin, "tsc"))
	servesClient(t, dir, "node", "main.js")
	counted(t, "a client in TypeScript, generated and compiled", version(t, filepath.Join(bin, "openapi-typescript"), "--version"),
		"a key made, used, listed and deleted")
}

// TestDocumentHasNoFindings runs Redocly's and Spectral's linters with their recommended rules, and their files of this repository, which say
// why a finding is none. The same document with two operations of one name shows that both find something.
func TestDocumentHasNoFindings(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(packages(t), "node_modules/.bin")
	dir := folder(t)
	for _, name := range []string{"api/openapi.yaml", ".redocly.lint-ignore.yaml", ".spectral.yaml"} {
		content := servertest.Must(os.ReadFile(filepath.Join("../..", name)))(t)
		servertest.OK(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		write(t, filepath.Join(dir, name), string(content))
	}
	findings := func(program string, into any) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, program), "lint", "api/openapi.yaml", "--format=json")
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "REDOCLY_TELEMETRY=off", "REDOCLY_SUPPRESS_UPDATE_NOTICE=true")
		output, err := cmd.Output() // a failure is a finding, or shows as something that is no JSON
		if unreadable := json.NewDecoder(bytes.NewReader(output)).Decode(into); unreadable != nil {
			t.Fatalf("%s: %v, %v: %s", program, err, unreadable, output)
		}
	}
	lint := func() (redocly, spectral []any) {
		var report struct{ Problems []any }
		findings("redocly", &report)
		findings("spectral", &spectral)
		return report.Problems, spectral
	}
	if redocly, spectral := lint(); len(redocly) != 0 || len(spectral) != 0 {
		t.Errorf("Redocly finds %v; Spectral finds %v", redocly, spectral)
	}
	document := filepath.Join(dir, "api/openapi.yaml")
	content := servertest.Must(os.ReadFile(document))(t)
	write(t, document, strings.Replace(string(content), "operationId: ping\n", "operationId: metrics\n", 1))
	if redocly, spectral := lint(); len(redocly) == 0 || len(spectral) == 0 {
		t.Errorf("two operations of one name: Redocly finds %v; Spectral finds %v", redocly, spectral)
	}
	counted(t, "api/openapi.yaml, checked by two linters", "Redocly, Spectral", "no findings but those that their files answer")
}
