package privatepg

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	port       = "5432" // only names the socket
	socketName = ".s.PGSQL." + port
	// systemFolder is root's alternative to folders that the unprivileged account cannot reach.
	systemFolder    = "/var/lib/accesskeys-dev"
	temporaryPrefix = "accesskeys-postgres-"
	maxLog          = 10 << 20
)

// account is who runs PostgreSQL, which refuses to run as root.
type account struct {
	uid, gid  int
	switching bool // we are root
}

// ownerOf returns the uid of a file's owner.
func ownerOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

// chooseAccount returns ourselves, or for root somebody unprivileged: the owner of existing data, else "postgres", else
// "nobody" (initdb wants an account that has a name).
func chooseAccount(data string) (account, error) {
	if os.Geteuid() != 0 {
		return account{uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	var stat syscall.Stat_t
	if syscall.Lstat(data, &stat) == nil && stat.Uid != 0 {
		return account{uid: int(stat.Uid), gid: int(stat.Gid), switching: true}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if found, err := user.Lookup(name); err == nil {
			uid, uidErr := strconv.Atoi(found.Uid)
			gid, gidErr := strconv.Atoi(found.Gid)
			return account{uid: uid, gid: gid, switching: true}, errors.Join(uidErr, gidErr)
		}
	}
	return account{}, errors.New("root needs an unprivileged account to run PostgreSQL: neither postgres nor nobody exists")
}

// command makes a command run as the account, apart from our terminal and our environment.
func (a account) command(cmd *exec.Cmd) *exec.Cmd {
	cmd.Dir = "/"
	// A fixed environment: ours may hold secrets, and PGPORT or PGDATA would change what PostgreSQL does. On macOS a
	// server without a valid locale in its environment refuses to start.
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	// A process group of its own, so that a terminal's Ctrl-C reaches only us and we can drain before the database ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a.switching {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	return cmd
}

// own gives a path to the account. It does not follow a symbolic link.
func (a account) own(path string) error {
	if !a.switching {
		return nil
	}
	return os.Lchown(path, a.uid, a.gid)
}

// reaches tries whether the account can enter a folder. Trying is the only check that knows every kind of permission.
func (a account) reaches(ctx context.Context, dir string) bool {
	return a.command(exec.CommandContext(ctx, "/bin/sh", "-c", `cd -- "$0"`, dir)).Run() == nil
}

// home is the folder in use, locked.
type home struct {
	account
	dir       string
	temporary bool
	lock      *os.File
}

func (h home) data() string           { return filepath.Join(h.dir, "data") }
func (h home) run() string            { return filepath.Join(h.dir, "run") }
func (h home) logFile() string        { return filepath.Join(h.dir, "postgres.log") }
func (h home) postmasterFile() string { return filepath.Join(h.data(), "postmaster.pid") }

// openHome finds or creates the folder and locks it.
func openHome(ctx context.Context, cfg Config, log *slog.Logger) (h home, err error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return home{}, err
	}
	if h.account, err = chooseAccount(filepath.Join(dir, "data")); err != nil {
		return home{}, err
	}
	// Root's folder stays root's, so that the account cannot replace what root opens in it, and lets others pass through;
	// what PostgreSQL needs inside is private to the account.
	mode := fs.FileMode(0o700)
	if h.switching {
		mode = 0o711
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), makeFolder(dir, mode)); err != nil {
		return home{}, err
	}
	if h.switching && !h.reaches(ctx, dir) {
		elsewhere, err := alternative(systemFolder, dir)
		if err != nil {
			return home{}, err
		}
		log.Info("PostgreSQL cannot run as root and its account cannot reach the folder, so another one is used",
			"folder", dir, "uid", h.uid, "instead", elsewhere)
		dir = elsewhere
		if h.account, err = chooseAccount(filepath.Join(dir, "data")); err != nil {
			return home{}, err
		}
	}
	// Resolved, because a living server is recognised by its path.
	if h.dir, err = filepath.EvalSymlinks(dir); err != nil {
		return home{}, err
	}
	h.lock, err = lockFolder(ctx, h.dir)
	return h, err
}

// makeFolder makes a folder of this mode, whatever the umask. What exists stays as it is.
func makeFolder(dir string, mode fs.FileMode) error {
	err := os.Mkdir(dir, mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

// alternative makes a folder below parent that stands for dir.
func alternative(parent, dir string) (string, error) {
	sum := sha256.Sum256([]byte(dir))
	child := filepath.Join(parent, fmt.Sprintf("%x", sum[:12]))
	for _, folder := range []string{parent, child} {
		if err := makeFolder(folder, 0o711); err != nil {
			return "", err
		}
		// SECURITY: root creates files in it, so it may not be somebody else's or a link.
		info, err := os.Lstat(folder)
		if err != nil || !info.IsDir() || ownerOf(info) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
			return "", fmt.Errorf("%s must be a folder that belongs to uid %d and that nobody else can write to; remove it",
				folder, os.Geteuid())
		}
	}
	return child, nil
}

// openTemporary makes a folder that the account owns, so that its supervisor can remove it.
func openTemporary(ctx context.Context, cfg Config, log *slog.Logger) (home, error) {
	a, err := chooseAccount("")
	if err != nil {
		return home{}, err
	}
	base := cfg.Getenv("TMPDIR")
	if !filepath.IsAbs(base) || !a.reaches(ctx, base) {
		base = "/tmp"
	}
	if base, err = filepath.EvalSymlinks(base); err != nil {
		return home{}, err
	}
	sweep(ctx, base, a, log)
	created, err := os.MkdirTemp(base, "new-"+temporaryPrefix)
	if err != nil {
		return home{}, err
	}
	// Renamed only when it is locked: a folder of this name whose lock is free belongs to the dead.
	h := home{account: a, temporary: true, dir: filepath.Join(base, strings.TrimPrefix(filepath.Base(created), "new-"))}
	if h.lock, err = lockFolder(ctx, created); err == nil {
		err = errors.Join(h.own(created), os.Rename(created, h.dir))
	}
	if err != nil {
		return home{}, errors.Join(err, unlock(h.lock), os.RemoveAll(created))
	}
	return h, nil
}

// sweep removes the temporary folders of processes that were killed together with their supervisors, and stops the
// servers that these left behind. It does what it can: another user's or a busy folder is not a reason to fail.
func sweep(ctx context.Context, base string, a account, log *slog.Logger) {
	entries, _ := os.ReadDir(base)
	for _, entry := range entries {
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), temporaryPrefix) {
			continue
		}
		h := home{account: a, dir: filepath.Join(base, entry.Name())}
		// SECURITY: anybody can create such a name in a shared folder, so the owner decides.
		info, err := entry.Info()
		if err != nil || ownerOf(info) != a.uid {
			continue
		}
		if h.lock, err = lockFolder(ctx, h.dir); err != nil {
			continue
		}
		if err = h.takeOver(ctx, log); err == nil {
			err = os.RemoveAll(h.dir)
		}
		if err = errors.Join(err, unlock(h.lock)); err != nil {
			log.Warn("the temporary folder of a killed process stays", "folder", h.dir, "error", err)
			continue
		}
		log.Info("removed the temporary folder of a killed process", "folder", h.dir)
	}
}

// openLog opens the server's log, empty if it had grown too large, and tells where the next output will begin.
func (h home) openLog() (file *os.File, begin int64, err error) {
	if file, err = openOwned(h.logFile(), os.O_WRONLY|os.O_APPEND|os.O_CREATE); err != nil {
		return nil, 0, fmt.Errorf("open the log: %w", err)
	}
	if begin, _ = file.Seek(0, io.SeekEnd); begin > maxLog { // the end of a plain file is always found
		begin = 0
		_ = file.Truncate(0) // a large log does no harm
	}
	return file, begin, nil
}

// socketFolder is the folder of the Unix socket: inside the home if the address fits there.
func (h home) socketFolder() (string, error) {
	const longest = 103 // macOS's limit; Linux has 107
	// A comma would separate two hosts in an address.
	if len(filepath.Join(h.run(), socketName)) <= longest && !strings.Contains(h.run(), ",") {
		return h.run(), nil
	}
	return os.MkdirTemp("/tmp", "accesskeys-socket-")
}

// freshSockets empties the socket's folder. What a killed server left there can name a process that has nothing to do
// with it by now, and PostgreSQL would then refuse to start.
func (h home) freshSockets(folder string) error {
	return errors.Join(os.RemoveAll(folder), os.Mkdir(folder, 0o700), h.own(folder))
}
