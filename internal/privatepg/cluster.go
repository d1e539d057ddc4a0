package privatepg

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	superuser      = "postgres"
	initPrefix     = "init-"
	postmasterFile = "postmaster.pid"
	pollInterval   = 10 * time.Millisecond
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

// takeOver stops every PostgreSQL process of a data folder whose owner is dead, and clears the way for the next one. It
// reports whether there was any. The caller holds the folder's lock.
func takeOver(ctx context.Context, data string, log *slog.Logger) (found bool, err error) {
	const pollsPerSecond = 50
	for poll := range 30 * pollsPerSecond {
		// The file before the processes: whoever has written its number is visible by then.
		left, _ := os.ReadFile(filepath.Join(data, postmasterFile)) // unreadable: PostgreSQL will say so
		servers, err := serversOf(ctx, data)
		if err != nil {
			return found, fmt.Errorf("look for a server that was left running: %w", err)
		}
		if len(servers) == 0 {
			return found, removeStale(filepath.Join(data, postmasterFile), left)
		}
		if !found {
			log.Info("taking over from a PostgreSQL that was left running", "pid", parsePID(left), "folder", data)
			found = true
		}
		// INT is the fast shutdown for the first process and harmless to its children, QUIT ends each of them at once,
		// KILL is for what hangs.
		signal := syscall.SIGINT
		switch {
		case poll > 25*pollsPerSecond:
			signal = syscall.SIGKILL
		case poll > 15*pollsPerSecond:
			signal = syscall.SIGQUIT
		}
		for _, server := range servers {
			if poll%pollsPerSecond == 0 {
				_ = server.Signal(signal) // one that has just ended, or it is seen again
			}
			_ = server.Release()
		}
		if err := pause(ctx, time.Second/pollsPerSecond); err != nil {
			return found, err
		}
	}
	return found, fmt.Errorf("the server that was left running on %s does not end", data)
}

// removeStale removes the file of a server that is gone, if PostgreSQL would take it for a living one's: because another
// process has its number by now, or because it was cut short. Every other file is left to PostgreSQL, which also looks
// at the shared memory that is named in it.
func removeStale(path string, content []byte) error {
	if content == nil {
		return nil
	}
	if pid := parsePID(content); pid != 0 && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return nil
	}
	now, err := os.ReadFile(path)
	if err == nil && bytes.Equal(now, content) {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a stale file: %w", err)
	}
	return nil
}

// parsePID returns the number in the first line, or 0.
func parsePID(content []byte) int {
	line, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid < 2 {
		return 0
	}
	return pid
}

// serversOf returns the PostgreSQL processes that run on a data folder. A number in a file proves nothing, since
// numbers are used again; a server is known by its name and by the folder it works in.
func serversOf(ctx context.Context, data string) ([]*os.Process, error) {
	folder, err := os.Stat(data)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat("/proc/self/cwd"); err != nil {
		return serversByArguments(ctx, data)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var servers []*os.Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !worksIn(pid, folder) {
			continue
		}
		server, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		// Again, now that the handle stands for one process and not for a number.
		if !worksIn(pid, folder) {
			_ = server.Release()
			continue
		}
		servers = append(servers, server)
	}
	return servers, nil
}

func worksIn(pid int, folder os.FileInfo) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	cwd, err := os.Stat(filepath.Join(proc, "cwd"))
	if err != nil || !os.SameFile(cwd, folder) {
		return false
	}
	name, err := os.ReadFile(filepath.Join(proc, "comm"))
	return err == nil && string(name) == "postgres\n"
}

// serversByArguments is for systems without /proc. It finds the first process only, by the command line that we gave
// it; its children end by themselves when it does.
func serversByArguments(ctx context.Context, data string) ([]*os.Process, error) {
	list, err := exec.CommandContext(ctx, "/bin/ps", "-axww", "-o", "pid=,args=").Output()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var servers []*os.Process
	for line := range strings.Lines(string(list)) {
		number, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.Contains(command, "/postgres -D "+data+" -c ") || strings.HasPrefix(command, "/bin/sh ") {
			continue
		}
		pid, err := strconv.Atoi(number)
		if err != nil {
			continue
		}
		if server, err := os.FindProcess(pid); err == nil {
			servers = append(servers, server)
		}
	}
	return servers, nil
}

// awaitReady waits until the server accepts connections. It returns errEnded as soon as the server has ended.
func awaitReady(ctx context.Context, p *process, socket string) error {
	for !accepts(ctx, socket) {
		if !p.running() {
			return fmt.Errorf("%w with status %q", errEnded, p.status)
		}
		if err := pause(ctx, pollInterval); err != nil {
			return err
		}
	}
	return nil
}

// accepts opens a session as far as the server's consent. A server that is starting listens already, but refuses.
func accepts(ctx context.Context, socket string) bool {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	defer conn.Close()
	if conn.SetDeadline(time.Now().Add(5*time.Second)) != nil {
		return false
	}
	const version3 = 3 << 16
	parameters := "user\x00" + superuser + "\x00database\x00postgres\x00\x00"
	request := binary.BigEndian.AppendUint32(nil, uint32(8+len(parameters)))
	request = binary.BigEndian.AppendUint32(request, version3)
	if _, err := conn.Write(append(request, parameters...)); err != nil {
		return false
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil || answer[0] != 'R' {
		return false
	}
	_, err = conn.Write([]byte{'X', 0, 0, 0, 4}) // a polite end, or the server's log gets a line
	return err == nil
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
