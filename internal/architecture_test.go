// Package internal_test holds what must be true of the program's shape as a whole.
package internal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "accesskeys/"

// allowed are the packages, and which others each may import. A new package, or a new import, is a decision to be made here.
var allowed = map[string][]string{
	"api":        {},
	"migrations": {},
	"cmd/server": {
		"internal/app", "internal/config", "internal/api", "internal/auth", "internal/buildinfo", "internal/logging", "internal/postgres", "internal/secret",
		"internal/store",
	},

	"internal/app": {
		"internal/api", "internal/auth", "internal/authcache", "internal/certificate", "internal/changelog", "internal/config", "internal/lastused", "internal/mail",
		"internal/postgres", "internal/privatepg", "internal/secret", "internal/store",
	},
	"internal/config": {"internal/auth", "internal/authcache", "internal/mail", "internal/postgres", "internal/secret", "internal/store", "internal/web"},

	"internal/api":         {"internal/authn", "internal/forwardauth", "internal/auth", "internal/mail", "internal/authcache", "internal/store", "internal/secret", "internal/web", "internal/buildinfo", "api"},
	"internal/authn":       {"internal/auth", "internal/web"},
	"internal/forwardauth": {"internal/auth", "internal/authn", "internal/web"},
	"internal/buildinfo":   {},
	"internal/web":         {"internal/logging", "internal/secret", "internal/slowclient"},
	"internal/slowclient":  {},
	"internal/auth":        {"internal/authcache", "internal/lastused", "internal/store", "internal/secret"},
	"internal/authcache":   {"internal/changelog", "internal/postgres", "internal/store"},
	"internal/store":       {"internal/changelog", "internal/postgres", "internal/secret"},
	"internal/lastused":    {"internal/store"},
	"internal/changelog":   {"internal/postgres"},
	"internal/postgres":    {"internal/secret", "migrations"},
	"internal/logging":     {},
	"internal/mail":        {"internal/secret"},
	"internal/certificate": {},
	"internal/privatepg":   {},
	"internal/secret":      {},
	"internal/pgtest":      {"internal/privatepg", "internal/secret", "internal/store", "migrations"},
	"internal/mailtest":    {},
	"test/bench":           {}, // nothing but benchmarks
	"test/chaos":           {}, // nothing but a test
	"test/e2e":             {}, // nothing but tests
	"internal/servertest":  {},
}

// testSupport are the packages that no program contains.
var testSupport = []string{"internal/pgtest", "internal/mailtest", "test/bench", "test/chaos", "test/e2e", "internal/servertest"}

// pkg is what go list tells of a package.
type pkg struct {
	Dir        string
	ImportPath string
	GoFiles    []string
	Imports    []string // of files that are no tests
}

// Imports go down only, and no package is a catch-all.
func TestImportsGoDownOnly(t *testing.T) {
	t.Parallel()
	packages := list(t, "./...")
	for _, violation := range importViolations(packages) {
		t.Error(violation)
	}
	seen := map[string]bool{}
	for _, p := range packages {
		seen[strings.TrimPrefix(p.ImportPath, module)] = true
	}
	for name := range allowed {
		if !seen[name] {
			t.Errorf("there is no %s any more: take it out of this test", name)
		}
	}
}

// Control of the above.
func TestForbiddenImportsAreFound(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		from, to string
		want     string
	}{
		"upwards":                         {"internal/store", module + "internal/auth", "internal/store imports internal/auth"},
		"past a layer":                    {"internal/auth", module + "migrations", "internal/auth imports migrations"},
		"sideways":                        {"internal/secret", module + "internal/privatepg", "internal/secret imports internal/privatepg"},
		"test support":                    {"cmd/server", module + "internal/pgtest", "cmd/server imports internal/pgtest"},
		"the driver":                      {"internal/api", "github.com/jackc/pgx/v5/pgconn", "internal/api imports the database's driver"},
		"the pool beside the SQL":         {"internal/store", "github.com/jackc/pgx/v5/pgxpool", "internal/store imports the database's driver"},
		"the driver's errors":             {"internal/changelog", "github.com/jackc/pgx/v5/pgconn", "internal/changelog imports the database's driver"},
		"the driver from the top":         {"cmd/server", "github.com/jackc/pgx/v5", "cmd/server imports the database's driver"},
		"the testing package":             {"internal/api", "testing", "internal/api imports testing"},
		"HTTP in the store":               {"internal/store", "net/http", "internal/store imports net/http"},
		"HTTP's test server in a program": {"cmd/server", "net/http/httptest", "cmd/server imports net/http/httptest"},
		"a package that nobody knows":     {"internal/extra", "fmt", "internal/extra is not in the list of packages"},
		"a catch-all":                     {"internal/store/util", "fmt", "internal/store/util is a catch-all, not a package"},
		"nothing":                         {"internal/api", module + "internal/auth", ""},
		"nothing, by the driver's owner":  {"internal/store", "github.com/jackc/pgx/v5", ""},
		"nothing, by test support":        {"internal/pgtest", "testing", ""},
	} {
		got := importViolations([]pkg{{ImportPath: module + test.from, GoFiles: []string{"a.go"}, Imports: []string{test.to}}})
		if strings.Join(got, "; ") != test.want {
			t.Errorf("%s: found %q, want %q", name, got, test.want)
		}
	}
}

func importViolations(packages []pkg) (violations []string) {
	for _, p := range packages {
		from := strings.TrimPrefix(p.ImportPath, module)
		imports, known := allowed[from]
		switch {
		case len(p.GoFiles) == 0:
			continue // tests only
		case slices.Contains([]string{"models", "util", "utils", "common", "helpers", "pkg", "misc"}, path.Base(from)):
			violations = append(violations, from+" is a catch-all, not a package")
			continue
		case !known:
			violations = append(violations, from+" is not in the list of packages")
			continue
		}
		for _, imported := range p.Imports {
			ours, isOurs := strings.CutPrefix(imported, module)
			forTests := imported == "testing" || strings.HasPrefix(imported, "testing/") || imported == "net/http/httptest"
			switch {
			case isOurs && !slices.Contains(imports, ours):
				violations = append(violations, from+" imports "+ours)
			case strings.HasPrefix(imported, "github.com/jackc/pgx") && !mayImport(from, imported) && !slices.Contains(testSupport, from):
				violations = append(violations, from+" imports the database's driver")
			case forTests && !slices.Contains(testSupport, from),
				imported == "net/http" && !slices.Contains([]string{"cmd/server", "internal/app", "internal/api", "internal/authn", "internal/forwardauth", "internal/web", "internal/slowclient"}, from):
				violations = append(violations, from+" imports "+imported)
			}
		}
	}
	return violations
}

// mayImport reports whether a package may import one of the driver's: internal/postgres all of them, and those with SQL what statements are
// made with, but neither the pool nor the driver's errors.
func mayImport(from, imported string) bool {
	switch from {
	case "internal/postgres":
		return true
	case "internal/store", "internal/changelog":
		return imported == "github.com/jackc/pgx/v5" || imported == "github.com/jackc/pgx/v5/pgtype"
	default:
		return false
	}
}

// The most that a package may have before it is split.
const (
	mostLines = 3000
	mostFiles = 20
)

// A package that is too large is split in the change that makes it so.
func TestPackagesAreSmallEnough(t *testing.T) {
	t.Parallel()
	for _, p := range list(t, "./...") {
		lines := 0
		for _, name := range p.GoFiles {
			source, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			lines += bytes.Count(source, []byte("\n"))
		}
		if tooLarge(lines, len(p.GoFiles)) {
			t.Errorf("%s has %d lines in %d files, more than %d or %d: split it", p.ImportPath, lines, len(p.GoFiles), mostLines, mostFiles)
		}
	}
	// Control.
	if tooLarge(mostLines, mostFiles) || !tooLarge(mostLines+1, 1) || !tooLarge(1, mostFiles+1) {
		t.Error("the bounds are not where they should be")
	}
}

func tooLarge(lines, files int) bool { return lines > mostLines || files > mostFiles }

// Nothing below reads the environment: cmd/server's main passes it on, and test support has a server to find.
func TestOnlyMainReadsTheEnvironment(t *testing.T) {
	t.Parallel()
	reads := map[string]int{}
	for _, p := range list(t, "./...") {
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, name := range p.GoFiles {
			for _, use := range environmentUses(t, filepath.Join(p.Dir, name), nil) {
				reads[from]++
				if from != "cmd/server" && !slices.Contains(testSupport, from) {
					t.Errorf("%s/%s uses %s", from, name, use)
				}
			}
		}
	}
	if reads["cmd/server"] == 0 {
		t.Errorf("nothing reads the environment in cmd/server, only in %v: the test is blind", slices.Collect(maps.Keys(reads)))
	}

	// Control: however it is read, it is seen.
	got := environmentUses(t, "made-up.go", `package p
		import ("fmt"; system "os"; "syscall")
		var os = fmt.Sprint
		func f() { read := system.Getenv; read("X"); system.LookupEnv("X"); syscall.Environ(); system.ExpandEnv("$X"); fmt.Sprint(system.Args) }`)
	if want := []string{"os.Getenv", "os.LookupEnv", "syscall.Environ", "os.ExpandEnv"}; !slices.Equal(got, want) {
		t.Errorf("in the made-up file are %v, want %v", got, want)
	}
}

// environmentUses are the mentions of functions that read the environment, called or not.
func environmentUses(t *testing.T, name string, source any) (uses []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	packages := map[string]string{} // by the name that they have in this file
	for _, spec := range file.Imports {
		imported := strings.Trim(spec.Path.Value, `"`)
		if imported != "os" && imported != "syscall" {
			continue
		}
		local := imported
		if spec.Name != nil {
			local = spec.Name.Name
		}
		if local == "." {
			uses = append(uses, "a dot import of "+imported)
		}
		packages[local] = imported
	}
	ast.Inspect(file, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		from, ok := selector.X.(*ast.Ident)
		if ok && packages[from.Name] != "" &&
			slices.Contains([]string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}, selector.Sel.Name) {
			uses = append(uses, packages[from.Name]+"."+selector.Sel.Name)
		}
		return true
	})
	return uses
}

// The binary holds what it needs: no test support, and not the validator that the tests hold answers against.
func TestBinaryContainsNoTestSupport(t *testing.T) {
	t.Parallel()
	inBinary := map[string]bool{}
	for _, p := range list(t, "-deps", "./cmd/server") {
		inBinary[p.ImportPath] = true
	}
	for _, needed := range []string{module + "internal/store", "github.com/jackc/pgx/v5"} { // control: the list is the binary's
		if !inBinary[needed] {
			t.Errorf("%s is not listed", needed)
		}
	}
	for imported := range inBinary {
		for _, unwanted := range []string{"github.com/getkin/kin-openapi", module + "internal/pgtest", module + "internal/mailtest", "net/http/httptest"} {
			if imported == unwanted || strings.HasPrefix(imported, unwanted+"/") {
				t.Errorf("the binary contains %s", imported)
			}
		}
	}
}

// list is `go list` from the module's root.
func list(t *testing.T, arguments ...string) (packages []pkg) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=Dir,ImportPath,GoFiles,Imports"}, arguments...)...)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(fmt.Errorf("go list: %w", err))
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		t.Fatal("go list names no packages")
	}
	return packages
}
