package privatepg

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
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

// chooseAccount returns ourselves, or for root somebody unprivileged: the owner of existing data, else "postgres", else
// "nobody" (initdb wants an account that has a name).
func chooseAccount(data string) (account, error) {
	if os.Geteuid() != 0 {
		return account{uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	if info, err := os.Lstat(data); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 {
			return account{uid: int(stat.Uid), gid: int(stat.Gid), switching: true}, nil
		}
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(found.Uid)
		gid, gidErr := strconv.Atoi(found.Gid)
		if uidErr == nil && gidErr == nil && uid != 0 {
			return account{uid: uid, gid: gid, switching: true}, nil
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

func (h home) data() string { return filepath.Join(h.dir, "data") }
func (h home) run() string  { return filepath.Join(h.dir, "run") }
func (h home) log() string  { return filepath.Join(h.dir, "postgres.log") }

// openHome finds or creates the folder and locks it. On an error nothing of it is left.
func openHome(ctx context.Context, cfg Config, log *slog.Logger) (home, error) {
	if cfg.Dir == "" {
		return openTemporary(ctx, cfg, log)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return home{}, fmt.Errorf("resolve %s: %w", cfg.Dir, err)
	}
	h := home{}
	if h.account, err = chooseAccount(filepath.Join(dir, "data")); err != nil {
		return home{}, err
	}
	if err := h.create(dir); err != nil {
		return home{}, err
	}
	if !h.reaches(ctx, dir) && h.switching {
		elsewhere, err := alternative(systemFolder, dir)
		if err != nil {
			return home{}, err
		}
		log.Info("PostgreSQL cannot run as root and its account cannot reach the folder, so another one is used",
			"folder", dir, "uid", h.uid, "instead", elsewhere)
		if h.account, err = chooseAccount(filepath.Join(elsewhere, "data")); err != nil {
			return home{}, err
		}
		dir = elsewhere
	}
	// Resolved, because a living server is recognised by its path.
	if h.dir, err = filepath.EvalSymlinks(dir); err != nil {
		return home{}, fmt.Errorf("resolve %s: %w", dir, err)
	}
	if h.lock, err = lockFolder(ctx, h.dir); err != nil {
		return home{}, err
	}
	return h, nil
}

// create makes the folder. Root's stays root's, so that the account cannot replace what root opens in it, and lets
// others pass through; what PostgreSQL needs inside is private to the account.
func (h home) create(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(dir), 0o755)
	switch {
	case err == nil && h.switching:
		err = passage(dir)
	case err == nil:
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create the folder: %w", err)
	}
	return nil
}

// passage creates a folder of ours that others can pass through, whatever the umask.
func passage(dir string) error {
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	return os.Chmod(dir, 0o711) //nolint:gosec // to pass through is all that it allows
}

// alternative creates a folder below parent that stands for dir.
func alternative(parent, dir string) (string, error) {
	sum := sha256.Sum256([]byte(dir))
	child := filepath.Join(parent, fmt.Sprintf("%x", sum[:12]))
	return child, errors.Join(rootFolder(parent), rootFolder(child))
}

// rootFolder creates a folder of ours that others can only pass through, or checks it.
//
// SECURITY: root creates files in it and runs what is in it, so it may not be somebody else's or a link.
func rootFolder(folder string) error {
	if err := passage(folder); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create the folder: %w", err)
	}
	info, err := os.Lstat(folder)
	if err != nil {
		return fmt.Errorf("check the folder: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s must be a folder that belongs to uid %d and that nobody else can write to; remove it",
			folder, os.Geteuid())
	}
	return nil
}

// openTemporary makes a folder that the account owns, so that its supervisor can remove it.
func openTemporary(ctx context.Context, cfg Config, log *slog.Logger) (home, error) {
	a, err := chooseAccount("")
	if err != nil {
		return home{}, err
	}
	h := home{account: a, temporary: true}
	base := cfg.Getenv("TMPDIR")
	if !filepath.IsAbs(base) || !h.reaches(ctx, base) {
		base = "/tmp"
	}
	if base, err = filepath.EvalSymlinks(base); err != nil {
		return home{}, fmt.Errorf("resolve the temporary folder: %w", err)
	}
	sweep(ctx, base, h.account, log)
	created, err := os.MkdirTemp(base, "new-"+temporaryPrefix)
	if err != nil {
		return home{}, fmt.Errorf("create a temporary folder: %w", err)
	}
	// Renamed only when it is locked: a folder of this name whose lock is free belongs to the dead.
	h.dir = filepath.Join(base, strings.TrimPrefix(filepath.Base(created), "new-"))
	if h.lock, err = lockFolder(ctx, created); err == nil {
		err = errors.Join(h.own(created), os.Rename(created, h.dir))
	}
	if err != nil {
		return home{}, errors.Join(fmt.Errorf("create a temporary folder: %w", err), unlock(h.lock), os.RemoveAll(created))
	}
	return h, nil
}

// sweep removes the temporary folders of processes that were killed together with their supervisors, and stops the
// servers that these left behind. It does what it can: another user's or a busy folder is not a reason to fail.
func sweep(ctx context.Context, base string, a account, log *slog.Logger) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), temporaryPrefix) {
			continue
		}
		info, err := entry.Info()
		if err != nil {
			continue
		}
		// SECURITY: anybody can create such a name in a shared folder, so the owner decides.
		if stat, ok := info.Sys().(*syscall.Stat_t); !ok || int(stat.Uid) != a.uid {
			continue
		}
		h := home{dir: filepath.Join(base, entry.Name())}
		if h.lock, err = lockFolder(ctx, h.dir); err != nil {
			continue
		}
		if _, err = a.takeOver(ctx, h.data(), log); err == nil {
			err = os.RemoveAll(h.dir)
		}
		if err = errors.Join(err, unlock(h.lock)); err != nil {
			log.Warn("the temporary folder of a killed process stays", "folder", h.dir, "error", err)
			continue
		}
		log.Info("removed the temporary folder of a killed process", "folder", h.dir)
	}
}

// openLog opens the server's log, empty if it had grown too large.
func (h home) openLog() (*os.File, error) {
	file, err := openOwned(h.log(), os.O_WRONLY|os.O_APPEND|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	info, err := file.Stat()
	if err == nil && info.Size() > maxLog {
		err = file.Truncate(0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the log: %w", err), file.Close())
	}
	return file, nil
}

// socketFolder is the folder of the Unix socket: inside the home if the address fits there.
func (h home) socketFolder() (string, error) {
	longest := 107
	if runtime.GOOS == "darwin" {
		longest = 103
	}
	// A comma would separate two hosts in an address.
	if len(filepath.Join(h.run(), socketName)) <= longest && !strings.Contains(h.run(), ",") {
		return h.run(), nil
	}
	folder, err := os.MkdirTemp("/tmp", "accesskeys-socket-")
	if err != nil {
		return "", fmt.Errorf("create a folder for the socket: %w", err)
	}
	if err := h.own(folder); err != nil {
		return "", errors.Join(fmt.Errorf("create a folder for the socket: %w", err), os.Remove(folder))
	}
	return folder, nil
}

// freshSockets empties the socket's folder. What a killed server left there can name a process that has nothing to do
// with it by now, and PostgreSQL would then refuse to start.
func (h home) freshSockets(folder string) error {
	err := os.RemoveAll(folder)
	if err == nil {
		err = os.Mkdir(folder, 0o700)
	}
	if err = errors.Join(err, h.own(folder)); err != nil {
		return fmt.Errorf("prepare the socket's folder: %w", err)
	}
	return nil
}
