package privatepg

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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
	return finder{cfg: s.config(nil), log: discard(), account: must(chooseAccount(""))(t)}
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
		"path/real": "12.1", "cache/postgresql-18.3.0/bin": "18.3", "cache/postgresql-17.5.0/bin": "17.5",
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
		"then what was downloaded":                 {useless, []string{}, "", "cache/postgresql-18.3.0/bin"},
		"data wants its own version":               {at("path/links"), []string{debian, brew}, "10", "deb/10/bin"},
		"even if it is in the folder of no number": {at("path/links"), []string{debian, brew}, "13", "brew/postgresql/bin"},
		"even if it was downloaded":                {at("path/links"), []string{debian, brew}, "17", "cache/postgresql-17.5.0/bin"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFinder(t, settings{Path: test.path, Folders: test.folders, CacheDir: at("cache")})
			if got, err := f.find(t.Context(), test.major, ""); err != nil || got != at(test.want) {
				t.Errorf("found %s (%v), want %s", got, err, at(test.want))
			}
		})
	}
}

func TestBinariesAreFoundWithoutPath(t *testing.T) {
	t.Parallel()
	// Where the packages of most machines put them. The download would fail, should they not be found.
	found := must(filepath.Glob("/usr/lib/postgresql/*/bin/initdb"))(t)
	found = append(found, must(filepath.Glob("/opt/homebrew/opt/postgresql*/bin/initdb"))(t)...)
	f := newFinder(t, settings{Path: "/nowhere", CacheDir: newFolder(t), DownloadURL: "http://127.0.0.1:1"})
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
	cache := newFolder(t)
	_, err := Start(t.Context(), settings{Dir: dir, CacheDir: cache, Path: installed(t), Folders: []string{}}.config(nil))
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

// repository serves PostgreSQL as a Maven repository would.
type repository struct {
	*httptest.Server
	jar       []byte
	checksum  string
	downloads atomic.Int32
	block     chan struct{} // when set, answers wait for its end
}

func newRepository(t *testing.T, r *repository) *repository {
	t.Helper()
	if r.checksum == "" {
		r.checksum = fmt.Sprintf("%x", sha256.Sum256(r.jar))
	}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if r.block != nil {
			<-r.block
		}
		switch {
		case !strings.HasPrefix(req.URL.Path, "/maven/io/zonky/test/postgres/embedded-postgres-binaries-"):
			http.NotFound(w, req)
		case strings.HasSuffix(req.URL.Path, ".jar"):
			r.downloads.Add(1)
			_, _ = w.Write(r.jar)
		case strings.HasSuffix(req.URL.Path, ".jar.sha256"):
			_, _ = w.Write([]byte(r.checksum))
		default:
			http.NotFound(w, req)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func TestPostgresIsDownloadedWhereThereIsNone(t *testing.T) {
	t.Parallel()
	repo := newRepository(t, &repository{jar: jar(t, txz(t, "bin/initdb", "bin/postgres", "bin/pg_ctl"))})
	hidden := settings{Temp: newFolder(t), Ephemeral: true, Path: "/nowhere", Folders: []string{},
		CacheDir: newFolder(t), DownloadURL: repo.URL + "/maven/"}
	strict := hidden
	strict.Umask = 0o077
	h := startHelper(t, strict, nil)
	eventually(t, "the download began", func() bool { return exists(filepath.Join(hidden.CacheDir, "lock")) })
	var finders sync.WaitGroup
	for range 2 { // meanwhile, as packages are tested
		finders.Go(func() {
			if bin, err := newFinder(t, hidden).find(t.Context(), "", ""); err != nil || !strings.HasPrefix(bin, hidden.CacheDir+"/") {
				t.Errorf("found %q: %v", bin, err)
			}
		})
	}
	finders.Wait()
	if got := repo.downloads.Load(); got != 1 {
		t.Errorf("there were %d downloads", got)
	}
	if left := must(filepath.Glob(filepath.Join(hidden.CacheDir, "download*")))(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	repo.Close() // the cache must do
	if _, err := newFinder(t, hidden).find(t.Context(), "", ""); err != nil {
		t.Error(err)
	}
	query(t, h.ready(t).URL, "SELECT 1")
	pid, _ := postmaster(t, h.Dir)
	if running := must(os.Readlink(filepath.Join("/proc", itoa(pid), "exe")))(t); !strings.HasPrefix(running, hidden.CacheDir+"/") {
		t.Errorf("%s runs, which is not from %s", running, hidden.CacheDir)
	}
}

func TestDamagedDownloadIsRefused(t *testing.T) {
	t.Parallel()
	whole := txz(t, "bin/initdb", "bin/postgres", "bin/pg_ctl") // libraries come last
	incomplete := txz(t, "bin/initdb", "bin/pg_ctl")            // there is no server in it
	for name, test := range map[string]struct {
		jar      []byte
		checksum string
	}{
		"wrong checksum":    {jar: jar(t, incomplete), checksum: strings.Repeat("0", 64)},
		"truncated archive": {jar: jar(t, whole[:len(whole)-100_000])},
		"no archive":        {jar: jar(t, []byte("not one"))},
		"incomplete":        {jar: jar(t, incomplete)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			repo := newRepository(t, &repository{jar: test.jar, checksum: test.checksum})
			cache := newFolder(t)
			h := startHelper(t, settings{Temp: newFolder(t), Path: "/nowhere", Folders: []string{}, CacheDir: cache,
				DownloadURL: repo.URL + "/maven"}, nil)
			if err := h.cmd.Wait(); err == nil {
				t.Fatal("it started")
			}
			if message := h.stderr.String(); !strings.Contains(message, "download PostgreSQL") ||
				!strings.Contains(message, ErrNoPostgres.Error()) {
				t.Errorf("the error: %s", message)
			}
			if left := must(filepath.Glob(filepath.Join(cache, "*postgresql*")))(t); len(left) > 0 {
				t.Errorf("the cache has %v", left)
			}
		})
	}
}

func TestNoPostgresNamesTheWaysOut(t *testing.T) {
	t.Parallel()
	repo := newRepository(t, &repository{})
	repo.Close()
	_, err := Start(t.Context(), settings{Dir: filepath.Join(newFolder(t), "pg"), Path: "/nowhere", Folders: []string{},
		CacheDir: newFolder(t), DownloadURL: repo.URL}.config(nil))
	if !errors.Is(err, ErrNoPostgres) {
		t.Fatalf("error %v, want ErrNoPostgres", err)
	}
	for _, part := range []string{" DATABASE_URL", "TEST_DATABASE_URL", "apt-get install postgresql",
		"brew install postgresql", "network", "unable to connect to " + repo.URL} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
}

func TestStalledDownloadDoesNotHoldUpItsCaller(t *testing.T) {
	t.Parallel()
	repo := newRepository(t, &repository{block: make(chan struct{})})
	released := sync.OnceFunc(func() { close(repo.block) })
	t.Cleanup(released)
	ctx, cancel := context.WithCancel(t.Context())
	log := &logBuffer{}
	cache := newFolder(t)
	failed := make(chan error, 1)
	go func() {
		_, err := Start(ctx, settings{Dir: filepath.Join(newFolder(t), "pg"), Path: "/nowhere", Folders: []string{},
			CacheDir: cache, DownloadURL: repo.URL + "/maven"}.config(log.logger()))
		failed <- err
	}()
	eventually(t, "the download began", func() bool { return strings.Contains(log.String(), "downloading PostgreSQL") })
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the context's", err)
	}
	released()
	eventually(t, "the abandoned download gave its lock back", func() bool {
		lock, err := lockFolder(t.Context(), cache)
		if err == nil {
			lock.Close()
		}
		return err == nil
	})
}
