package privatepg

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// needsRoot is for what an ordinary user cannot do: to run a process as somebody else.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("only root can switch to another account, and this is uid %d", os.Geteuid())
	}
}

func fileOwner(t *testing.T, path string) (uid int, mode os.FileMode) {
	t.Helper()
	info := must(os.Lstat(path))(t)
	return int(info.Sys().(*syscall.Stat_t).Uid), info.Mode()
}

func chown(t *testing.T, dir string, uid int) {
	t.Helper()
	ok(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, uid, uid))
	}))
}

// asUser is a program that runs another one as somebody else.
func asUser(uid int) []string {
	return []string{"setpriv", fmt.Sprint("--reuid=", uid), fmt.Sprint("--regid=", uid), "--clear-groups"}
}

// unprivileged returns the account that root's PostgreSQL runs as.
func unprivileged(t *testing.T) int {
	t.Helper()
	for _, name := range []string{"postgres", "nobody"} {
		if found, err := user.Lookup(name); err == nil {
			return atoi(t, found.Uid)
		}
	}
	t.Fatal("there is no unprivileged account")
	return 0
}

func TestServerRunsUnprivilegedAndAsItsUser(t *testing.T) {
	t.Parallel()
	want := os.Geteuid()
	if want == 0 {
		want = unprivileged(t)
	}
	dir := filepath.Join(newFolder(t), "pg")
	start(t, settings{Dir: dir, Ephemeral: true})
	pid, pgid := postmaster(t, dir)
	for _, process := range []int{pid, pgid} {
		if uid, _ := fileOwner(t, fmt.Sprintf("/proc/%d", process)); uid != want {
			t.Errorf("process %d runs as uid %d, want %d", process, uid, want)
		}
	}
	for _, name := range []string{"data", "run"} {
		if uid, mode := fileOwner(t, filepath.Join(dir, name)); uid != want || mode.Perm() != 0o700 {
			t.Errorf("%s belongs to uid %d with mode %v, want %d and 0700", name, uid, mode, want)
		}
	}
	// What we open ourselves must not be the account's to replace.
	for _, name := range []string{".", "lock", "postgres.log"} {
		if uid, mode := fileOwner(t, filepath.Join(dir, name)); uid != os.Geteuid() || mode.Perm()&0o022 != 0 {
			t.Errorf("%s belongs to uid %d with mode %v", name, uid, mode)
		}
	}
}

func TestOrdinaryUserRunsItsOwnServer(t *testing.T) {
	needsRoot(t) // an ordinary user sees it in every other test
	t.Parallel()
	uid := atoi(t, must(user.Lookup("nobody"))(t).Uid) // initdb wants an account that has a name
	for name, s := range map[string]settings{
		"kept":      {Dir: initialisedFolder(t)},
		"temporary": {Temp: newFolder(t), Ephemeral: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if s.Dir != "" {
				chown(t, s.Dir, uid)
				ok(t, os.Chmod(s.Dir, 0o700))
			}
			h := startHelper(t, s, asUser(uid)...).ready(t)
			query(t, h.URL, "SELECT 1")
			pid, pgid := postmaster(t, h.Dir)
			for _, path := range []string{fmt.Sprintf("/proc/%d", pid), h.Dir, filepath.Join(h.Dir, "data")} {
				if got, mode := fileOwner(t, path); got != uid || strings.HasPrefix(path, h.Dir) && mode.Perm() != 0o700 {
					t.Errorf("%s belongs to uid %d with mode %v, want %d and 0700", path, got, mode, uid)
				}
			}
			h.kill(t)
			nothingLeft(t, h.Dir, pgid, s.Dir == "")
		})
	}
}

// Containers are run by a number that no name belongs to.
func TestUserWithoutANameIsToldWhatToDo(t *testing.T) {
	needsRoot(t)
	t.Parallel()
	const uid = 1000720000
	dir := newFolder(t)
	chown(t, dir, uid)
	h := startHelper(t, settings{Dir: filepath.Join(dir, "pg")}, asUser(uid)...)
	if line, err := h.stdout.ReadString('\n'); err == nil {
		t.Fatalf("it has started: %s", line)
	}
	_ = h.cmd.Wait() // it has failed, and has said everything
	for _, want := range []string{"PostgreSQL does not run as uid 1000720000", "DATABASE_URL", "app:x:1000720000:0::/:/bin/sh", "a user that has one"} {
		if !strings.Contains(h.stderr.String(), want) {
			t.Errorf("%q is not said: %s", want, &h.stderr)
		}
	}
}

func TestRootServesTheOwnerOfExistingData(t *testing.T) {
	needsRoot(t)
	t.Parallel()
	const uid = 54321
	for name, owner := range map[string]int{"a user's": uid, "a copy that root made": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := initialisedFolder(t)
			chown(t, dir, owner)
			ok(t, os.Remove(filepath.Join(dir, "lock")), os.Remove(filepath.Join(dir, "postgres.log"))) // root makes them
			start(t, settings{Dir: dir})
			want := owner
			if owner == 0 {
				want = unprivileged(t)
			}
			pid, _ := postmaster(t, dir)
			if got, _ := fileOwner(t, fmt.Sprintf("/proc/%d", pid)); got != want {
				t.Errorf("PostgreSQL runs as uid %d, want %d", got, want)
			}
			// The user must be able to go on without root.
			for _, name := range []string{"lock", "postgres.log"} {
				if got, _ := fileOwner(t, filepath.Join(dir, name)); got != owner {
					t.Errorf("%s belongs to uid %d, want %d", name, got, owner)
				}
			}
		})
	}
}

func TestFolderThatTheAccountCannotReachIsReplaced(t *testing.T) {
	needsRoot(t)
	t.Parallel()
	closed := newFolder(t)
	ok(t, os.Chmod(closed, 0o700))
	dir := filepath.Join(closed, "checkout", "pg")
	server, log := startLogged(t, settings{Dir: dir})
	t.Cleanup(func() { ok(t, server.Close(), os.RemoveAll(server.Dir())) })
	if !strings.HasPrefix(server.Dir(), systemFolder+"/") || strings.Count(log.String(), "instead="+server.Dir()) != 1 {
		t.Fatalf("it runs in %s and says %s", server.Dir(), log)
	}
	query(t, server.URL("postgres"), "CREATE TABLE kept ()")
	var busy *InUseError
	if err := fails(t, settings{Dir: dir}); !errors.As(err, &busy) || busy.PID != os.Getpid() {
		t.Errorf("a second owner: %v", err)
	}
	ok(t, server.Close())
	again := must(Start(t.Context(), settings{Dir: dir}.config(io.Discard)))(t)
	t.Cleanup(func() { ok(t, again.Close()) })
	query(t, again.URL("postgres"), "SELECT FROM kept")
}

func TestRootsUmaskDoesNotShutTheAccountOut(t *testing.T) {
	needsRoot(t)
	t.Parallel()
	h := startHelper(t, settings{Dir: filepath.Join(newFolder(t), "pg"), Ephemeral: true}, "/bin/sh", "-c", `umask 077; exec "$0"`).ready(t)
	query(t, h.URL, "SELECT 1")
	if strings.HasPrefix(h.Dir, systemFolder) {
		t.Errorf("it runs in %s", h.Dir)
	}
}

func TestReplacementMustBeRootsOwn(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(folder string) error{
		"writable": func(folder string) error { return errors.Join(os.Mkdir(folder, 0o700), os.Chmod(folder, 0o777)) },
		"a link":   func(folder string) error { return os.Symlink(os.TempDir(), folder) },
		"a file":   func(folder string) error { return os.WriteFile(folder, nil, 0o600) },
		"another's": func(folder string) error {
			if os.Geteuid() != 0 { // nobody else can give a folder away
				return os.Symlink(os.TempDir(), folder)
			}
			return errors.Join(os.Mkdir(folder, 0o700), os.Chown(folder, 54321, -1))
		},
	} {
		parent := filepath.Join(newFolder(t), "parent")
		child := must(alternative(parent, "/some/dir"))(t) // the control
		if must(alternative(parent, "/other"))(t) == child {
			t.Error("two folders share one")
		}
		for _, folder := range []string{child, parent} {
			ok(t, os.RemoveAll(folder), spoil(folder))
			if _, err := alternative(parent, "/some/dir"); err == nil {
				t.Errorf("%s is %s and accepted", folder, name)
			}
		}
	}
}

func TestRootOpensNoLinks(t *testing.T) {
	t.Parallel()
	for name, link := range map[string]func(from, to string) error{"symbolic": os.Symlink, "hard": os.Link} {
		if name == "hard" && os.Geteuid() != 0 {
			continue // an ordinary user can reach nothing by it
		}
		for _, file := range []string{"lock", "postgres.log"} {
			dir := initialisedFolder(t)
			victim, path := filepath.Join(newFolder(t), "victim"), filepath.Join(dir, file)
			ok(t, os.WriteFile(victim, []byte("precious"), 0o600), os.Remove(path), link(victim, path))
			_ = fails(t, settings{Dir: dir})
			if got := must(os.ReadFile(victim))(t); string(got) != "precious" {
				t.Errorf("%s link as %s: the file is %q", name, file, got)
			}
		}
	}
}
