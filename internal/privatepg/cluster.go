package privatepg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	superuser    = "postgres"
	initPrefix   = "init-"
	pollInterval = 10 * time.Millisecond
)

// errEnded says that PostgreSQL ended by itself instead of starting.
var errEnded = errors.New("it ended by itself")

// dataVersion returns the major version of the data, or "" when there is none yet.
func (h home) dataVersion() (string, error) {
	info, err := os.Lstat(h.data())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at the data: %w", err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s is not a folder; remove it", h.data())
	}
	content, err := os.ReadFile(filepath.Join(h.data(), "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		if os.Remove(h.data()) == nil { // succeeds only for an empty folder
			return "", nil
		}
		return "", fmt.Errorf("%s is not PostgreSQL's; remove it", h.data())
	}
	if err != nil {
		return "", fmt.Errorf("look at the data: %w", err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && h.switching && stat.Uid == 0 {
		if err := h.ownData(); err != nil {
			return "", fmt.Errorf("give the data to uid %d: %w", h.uid, err)
		}
	}
	return strings.TrimSpace(string(content)), nil
}

// ownData gives the account a copy of the data that root made: PostgreSQL refuses data of another owner.
func (h home) ownData() error {
	// SECURITY: within the folder, in case that somebody exchanges parts of it for links meanwhile.
	folder, err := os.OpenRoot(h.dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	return fs.WalkDir(folder.FS(), "data", func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, folder.Lchown(path, h.uid, h.gid))
	})
}

// removeLeftovers removes clusters whose creation was interrupted.
func (h home) removeLeftovers() error {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), initPrefix) {
			if err := os.RemoveAll(filepath.Join(h.dir, entry.Name())); err != nil {
				return fmt.Errorf("remove leftovers: %w", err)
			}
		}
	}
	return nil
}

// initialise creates the cluster beside its final place and renames it when it is complete, so that an interrupted
// initdb leaves no data folder that can neither be used nor be created anew.
func (s *Server) initialise(ctx context.Context) error {
	s.log.Info("creating a database cluster", "folder", s.home.dir, "binaries", s.bin)
	// C.UTF-8 sorts alike on every machine but does not exist on all of them.
	var errs []error
	for _, locale := range []string{"C.UTF-8", "C"} {
		err := s.initdb(ctx, locale)
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, fmt.Errorf("locale %s: %w", locale, err))
	}
	return errors.Join(errs...)
}

func (s *Server) initdb(ctx context.Context, locale string) error {
	folder, err := os.MkdirTemp(s.home.dir, initPrefix)
	if err != nil {
		return fmt.Errorf("create a cluster: %w", err)
	}
	defer os.RemoveAll(folder) // gone after the rename; otherwise the next start removes it
	if err := s.home.own(folder); err != nil {
		return fmt.Errorf("create a cluster: %w", err)
	}
	logFile, err := s.home.openLog()
	if err != nil {
		return err
	}
	defer logFile.Close()
	begin := logEnd(logFile)
	// --auth=trust: see the note on the socket where the server is started.
	command := []string{filepath.Join(s.bin, "initdb"), "--pgdata", folder, "--username", superuser, "--auth=trust",
		"--encoding=UTF8", "--locale=" + locale}
	if s.cfg.Ephemeral {
		command = append(command, "--no-sync")
	}
	p, err := s.home.supervise(logFile, append(s.temporary(), folder), command)
	if err != nil {
		return err
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.release(time.Minute)
		return fmt.Errorf("create a cluster: %w", ctx.Err())
	}
	p.keep()
	if p.status != "0" {
		return fmt.Errorf("create a cluster: initdb ended with status %q, its output ends:\n%s", p.status, logTail(s.home.log(), begin))
	}
	if err := os.Rename(folder, s.home.data()); err != nil {
		return fmt.Errorf("create a cluster: %w", err)
	}
	return nil
}

// awaitReady waits until the server accepts connections. It returns errEnded as soon as the server has ended.
func awaitReady(ctx context.Context, p *process, data string) error {
	for {
		// That this process holds the data rules out the word of one that is still going down.
		state, _ := os.ReadFile(filepath.Join(data, postmasterFile)) // it takes a moment to appear
		if p.contains(parsePID(state)) && saysReady(state) {
			return nil
		}
		if !p.running() {
			return fmt.Errorf("%w with status %q", errEnded, p.status)
		}
		if err := pause(ctx, pollInterval); err != nil {
			return err
		}
	}
}

// saysReady reports whether a server has written into its postmaster.pid that it accepts connections. The line is the eighth, and pg_ctl -w
// waits for it too (PostgreSQL's src/include/utils/pidfile.h).
func saysReady(state []byte) bool {
	const statusLine = 8
	lines := strings.Split(string(state), "\n")
	return len(lines) >= statusLine && strings.TrimSpace(lines[statusLine-1]) == "ready"
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// logEnd is where the next output will begin, or the beginning if that cannot be told.
func logEnd(log *os.File) int64 {
	info, err := log.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// logTail returns the end of what was logged since begin.
func logTail(path string, begin int64) string {
	const longest = 4096
	file, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil {
		begin = max(begin, info.Size()-longest)
	}
	tail, err := io.ReadAll(io.NewSectionReader(file, begin, longest))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(tail))
}
