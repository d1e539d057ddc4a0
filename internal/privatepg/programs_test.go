package privatepg

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// executable makes a script. A child writes it: what we write ourselves, other children of ours hold open for a moment,
// and then it cannot be run.
func executable(t *testing.T, path, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `mkdir -p "${1%/*}" && cat >"$1" && chmod 755 "$1"`, "sh", path)
	cmd.Stdin = strings.NewReader("#!/bin/sh\n" + script + "\n")
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("write %s: %v: %s", path, err, output)
	}
}

// installed is the machine's own folder with programs.
func installed(t *testing.T) string {
	t.Helper()
	return must(findPrograms(t.Context(), must(chooseAccount(""))(t), os.Getenv("PATH"), places, "", ""))(t)
}

func TestProgramsAreFoundInOrder(t *testing.T) {
	t.Parallel()
	root := newFolder(t)
	at := func(folder string) string { return filepath.Join(root, folder) }
	for folder, version := range map[string]string{
		"deb/9.6/bin": "9.6.24", "deb/10/bin": "10.23", "deb/15/bin": "15.3",
		"brew/postgresql/bin": "13.1", "brew/postgresql@9/bin": "9.0", "brew/postgresql@16/bin": "16beta1", "path/real": "12.1",
	} {
		for _, name := range []string{"initdb", "postgres"} {
			executable(t, filepath.Join(at(folder), name), "echo 'postgres (PostgreSQL) "+version+" (Test)'")
		}
	}
	executable(t, at("path/half/initdb"), "")
	executable(t, at("path/mute/initdb"), "")
	executable(t, at("path/mute/postgres"), "exit 1")
	executable(t, at("path/closed/postgres"), "echo 'postgres (PostgreSQL) 11.1'")
	ok(t, os.Mkdir(at("path/links"), 0o755), os.WriteFile(at("path/closed/initdb"), nil, 0o644),
		os.Symlink(at("path/real/initdb"), at("path/links/initdb"))) // postgres is beside what it points to
	relative := strings.Repeat("../", 20) + at("deb/10/bin") // from wherever we are
	useless := strings.Join([]string{"", ".", relative, at("missing"), at("path/half"), at("path/mute"), at("path/closed")}, ":")
	links, debian, brew := at("path/links"), at("deb/*/bin"), at("brew/postgresql*/bin")
	for name, test := range map[string]struct {
		path   string
		places []string
		major  string
		want   string
	}{
		"PATH comes first, links are resolved":     {useless + ":" + links, []string{debian}, "", "path/real"},
		"then the places, newest by number":        {useless, []string{debian, brew}, "", "deb/15/bin"},
		"a later place only after the earlier":     {useless, []string{brew, debian}, "", "brew/postgresql@16/bin"},
		"data wants its own version":               {links, []string{debian, brew}, "10", "deb/10/bin"},
		"even if it is in the folder of no number": {links, []string{debian, brew}, "13", "brew/postgresql/bin"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := findPrograms(t.Context(), must(chooseAccount(""))(t), test.path, test.places, test.major, "")
			if err != nil || got != at(test.want) {
				t.Errorf("found %s (%v), want %s", got, err, at(test.want))
			}
		})
	}
}

func TestPackagesAreFoundWithoutPath(t *testing.T) {
	t.Parallel()
	_, err := findPrograms(t.Context(), must(chooseAccount(""))(t), "/nowhere", places, "", "")
	if packaged := found("/usr/lib/postgresql/*/bin/initdb"); err != nil && len(packaged) > 0 {
		t.Errorf("%v, though there are %v", err, packaged)
	}
}

func TestRealServerStartsFromLinkedPrograms(t *testing.T) {
	t.Parallel()
	links := newFolder(t)
	for _, name := range []string{"initdb", "postgres"} {
		ok(t, os.Symlink(filepath.Join(installed(t), name), filepath.Join(links, name)))
	}
	server := start(t, settings{Dir: initialisedFolder(t), Path: links, Places: []string{}})
	if server.bin != installed(t) {
		t.Errorf("it runs from %s, not from %s", server.bin, installed(t))
	}
}

func TestDataOfAnotherVersionIsRefusedWithTheWayOut(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	ok(t, os.WriteFile(filepath.Join(dir, "data", "PG_VERSION"), []byte("11\n"), 0o600))
	_, major := must(chooseAccount(""))(t).programsIn(t.Context(), installed(t))
	err := fails(t, settings{Dir: dir, Path: installed(t), Places: []string{}})
	for _, part := range []string{"PostgreSQL 11", "PostgreSQL " + major, "remove that folder", filepath.Join(dir, "data")} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	if !exists(filepath.Join(dir, "data", "base")) {
		t.Error("the data is gone")
	}
}

func TestNoPostgresNamesTheWaysOut(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newFolder(t), "pg")
	err := fails(t, settings{Dir: dir, Path: "/nowhere", Places: []string{}})
	if !errors.Is(err, ErrNoPostgres) {
		t.Fatalf("error %v, want ErrNoPostgres", err)
	}
	for _, part := range []string{" DATABASE_URL", "TEST_DATABASE_URL", "apt-get install postgresql", "brew install postgresql@17"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
}
