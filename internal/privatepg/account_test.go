package privatepg

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
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

// belong fails the test unless files, or processes, are this user's, and have this mode where one is given.
func belong(t *testing.T, uid int, mode os.FileMode, paths ...string) {
	t.Helper()
	for _, path := range paths {
		info := must(os.Lstat(path))(t)
		if got := int(info.Sys().(*syscall.Stat_t).Uid); got != uid || mode != 0 && info.Mode().Perm() != mode {
			t.Errorf("%s belongs to uid %d with mode %v, want %d and %v", path, got, info.Mode(), uid, mode)
		}
	}
}

// processPath is the folder of a process, whose owner is the process's user.
func processPath(pid int) string { return fmt.Sprintf("/proc/%d", pid) }

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
			return must(strconv.Atoi(found.Uid))(t)
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
	belong(t, want, 0, processPath(pid), processPath(pgid))
	belong(t, want, 0o700, filepath.Join(dir, "data"), filepath.Join(dir, "run"))
	// What we open ourselves must not be the account's to replace.
	for _, name := range []string{".", "lock", "postgres.log"} {
		belong(t, os.Geteuid(), 0, filepath.Join(dir, name))
		if mode := must(os.Lstat(filepath.Join(dir, name)))(t).Mode(); mode.Perm()&0o022 != 0 {
			t.Errorf("%s has mode %v", name, mode)
		}
	}
}

func TestOrdinaryUserRunsItsOwnServer(t *testing.T) {
	needsRoot(t) // an ordinary user sees it in every other test
	t.Parallel()
	uid := must(strconv.Atoi(must(user.Lookup("nobody"))(t).Uid))(t) // initdb wants an account that has a name
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
			belong(t, uid, 0, processPath(pid))
			belong(t, uid, 0o700, h.Dir, filepath.Join(h.Dir, "data"))
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
			belong(t, want, 0, processPath(pid))
			belong(t, owner, 0, filepath.Join(dir, "lock"), filepath.Join(dir, "postgres.log")) // the user must be able to go on without root
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
	if busy := refused(t, settings{Dir: dir}); busy.PID != os.Getpid() {
		t.Errorf("a second owner: %v", busy)
	}
	ok(t, server.Close())
	query(t, start(t, settings{Dir: dir}).URL("postgres"), "SELECT FROM kept")
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
