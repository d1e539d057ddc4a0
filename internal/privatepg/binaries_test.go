package privatepg

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakeBinaries makes a folder that looks like PostgreSQL of a version.
func fakeBinaries(t *testing.T, folder, version string) {
	t.Helper()
	for _, name := range []string{"initdb", "postgres"} {
		executable(t, filepath.Join(folder, name), "echo 'postgres (PostgreSQL) "+version+" (Test)'")
	}
}

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

func newFinder(t *testing.T, s settings) finder {
	t.Helper()
	return finder{cfg: s.config(nil), account: must(chooseAccount(""))(t)}
}

// installed is the machine's own folder with binaries.
func installed(t *testing.T) string {
	t.Helper()
	return must(newFinder(t, settings{}).find(t.Context(), "", ""))(t)
}

func TestBinariesAreFoundInOrder(t *testing.T) {
	t.Parallel()
	root := newFolder(t)
	at := func(parts ...string) string { return filepath.Join(append([]string{root}, parts...)...) }
	for folder, version := range map[string]string{
		"deb/9.6/bin": "9.6.24", "deb/10/bin": "10.23", "deb/15/bin": "15.3",
		"brew/postgresql/bin": "13.1", "brew/postgresql@9/bin": "9.0", "brew/postgresql@16/bin": "16beta1",
		"path/real": "12.1",
	} {
		fakeBinaries(t, at(folder), version)
	}
	for _, folder := range []string{"path/half", "path/unexecutable", "path/directory", "path/links", "path/broken"} {
		if err := os.MkdirAll(at(folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fakeBinaries(t, at("path/mute"), "0")
	executable(t, at("path/mute/postgres"), "exit 1")
	if err := errors.Join(
		os.WriteFile(at("path/half/initdb"), []byte("#!/bin/sh\n"), 0o755),
		os.WriteFile(at("path/unexecutable/initdb"), []byte("#!/bin/sh\n"), 0o644),
		os.WriteFile(at("path/unexecutable/postgres"), []byte("#!/bin/sh\n"), 0o644),
		os.Mkdir(at("path/directory/initdb"), 0o755), os.Mkdir(at("path/directory/postgres"), 0o755),
		os.Symlink(at("nowhere"), at("path/broken/initdb")), os.Symlink(at("nowhere"), at("path/broken/postgres")),
		os.Symlink(at("path/real/initdb"), at("path/links/initdb")), // postgres is beside what the link points to
	); err != nil {
		t.Fatal(err)
	}
	useless := strings.Join([]string{"", ".", "relative", at("missing"), at("path/half"), at("path/unexecutable"),
		at("path/directory"), at("path/broken"), at("path/mute")}, ":")
	debian, brew := at("deb/*/bin"), at("brew/postgresql*/bin")
	for name, test := range map[string]struct {
		path    string
		folders []string
		major   string
		want    string
	}{
		"PATH comes first, links are resolved":     {useless + ":" + at("path/links"), []string{debian}, "", "path/real"},
		"then the folders, newest by number":       {useless, []string{debian, brew}, "", "deb/15/bin"},
		"a later pattern only after the earlier":   {useless, []string{brew, debian}, "", "brew/postgresql@16/bin"},
		"data wants its own version":               {at("path/links"), []string{debian, brew}, "10", "deb/10/bin"},
		"even if it is in the folder of no number": {at("path/links"), []string{debian, brew}, "13", "brew/postgresql/bin"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFinder(t, settings{Path: test.path, Folders: test.folders})
			if got, err := f.find(t.Context(), test.major, ""); err != nil || got != at(test.want) {
				t.Errorf("found %s (%v), want %s", got, err, at(test.want))
			}
		})
	}
}

func TestBinariesAreFoundWithoutPath(t *testing.T) {
	t.Parallel()
	// Where the packages of most machines put them.
	found := must(filepath.Glob("/usr/lib/postgresql/*/bin/initdb"))(t)
	found = append(found, must(filepath.Glob("/opt/homebrew/opt/postgresql*/bin/initdb"))(t)...)
	f := newFinder(t, settings{Path: "/nowhere"})
	bin, err := f.find(t.Context(), "", "")
	if len(found) == 0 {
		t.Logf("this machine has PostgreSQL nowhere that we look, so there is only: %q, %v", bin, err)
	} else if err != nil || !exists(filepath.Join(bin, "initdb")) {
		t.Errorf("found %q (%v), though there are %v", bin, err, found)
	}
}

func TestRealServerStartsFromLinkedBinaries(t *testing.T) {
	t.Parallel()
	links := newFolder(t)
	for _, name := range []string{"initdb", "postgres"} {
		if err := os.Symlink(filepath.Join(installed(t), name), filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
	}
	server := start(t, settings{Dir: initialisedFolder(t), Path: links, Folders: []string{}})
	if server.bin != installed(t) {
		t.Errorf("it runs from %s, not from %s", server.bin, installed(t))
	}
}

func TestDataOfAnotherVersionIsRefusedWithTheWayOut(t *testing.T) {
	t.Parallel()
	dir := initialisedFolder(t)
	if err := os.WriteFile(filepath.Join(dir, "data", "PG_VERSION"), []byte("11\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, major, _ := newFinder(t, settings{}).usable(t.Context(), installed(t))
	_, err := Start(t.Context(), settings{Dir: dir, Path: installed(t), Folders: []string{}}.config(nil))
	if err == nil {
		t.Fatal("it started")
	}
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
	_, err := Start(t.Context(), settings{Dir: filepath.Join(newFolder(t), "pg"), Path: "/nowhere", Folders: []string{}}.config(nil))
	if !errors.Is(err, ErrNoPostgres) {
		t.Fatalf("error %v, want ErrNoPostgres", err)
	}
	for _, part := range []string{" DATABASE_URL", "TEST_DATABASE_URL", "apt-get install postgresql", "brew install postgresql"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
}
