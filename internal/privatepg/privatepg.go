// Package privatepg runs a PostgreSQL of our own: for `server dev`, where the data is kept between runs, and for tests,
// which throw it away.
//
// It promises that nothing is left running when its process ends, however it ends, and that the next start on the same
// folder works, whatever state the previous one left behind. The server can be reached over a Unix socket only.
package privatepg

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrNoPostgres says that no PostgreSQL was found.
var ErrNoPostgres = errors.New("there is no PostgreSQL to run: install it (apt-get install postgresql on Debian, brew install postgresql), " +
	"or set DATABASE_URL (TEST_DATABASE_URL for tests) to use a server of yours")

// InUseError says that a living process uses the folder.
type InUseError struct {
	Dir string
	PID int // 0 when it cannot be told, say because the process lives in another container
}

// Error names the folder and the process.
func (e *InUseError) Error() string {
	if e.PID == 0 {
		return e.Dir + " is in use by another process"
	}
	return fmt.Sprintf("%s is in use by process %d", e.Dir, e.PID)
}

// Config says where the data lives and which PostgreSQL runs on it.
type Config struct {
	// Dir holds the data, the lock and the server's log (postgres.log). It is created if missing, and kept.
	// Empty means a temporary folder, which goes with Close or with our process.
	Dir string
	// Ephemeral trades every durability for speed and allows 200 connections. For tests.
	Ephemeral bool
	// Parameters are further settings of the server. They cannot open a network port.
	Parameters map[string]string
	// Logger hears of what takes long and of what is surprising. Nil means silence.
	Logger *slog.Logger
	// Getenv reads PATH and TMPDIR. Required.
	Getenv func(string) string
	// Folders are patterns of folders with PostgreSQL's binaries, searched after PATH, newest version first within each.
	// Nil means where Debian's packages and Homebrew put them; empty means PATH only.
	Folders []string
}

// Server is a PostgreSQL that belongs to this process. Its methods may be called concurrently.
type Server struct {
	cfg     Config
	log     *slog.Logger
	home    home
	bin     string // folder of the binaries
	sockets string // folder of the Unix socket

	mu     sync.Mutex
	proc   *process // the last one started, nil before the first
	closed bool
}

// Start returns a server that accepts connections, on existing data or on a new cluster. The context bounds the start
// only. Errors: *InUseError when another process has the folder, ErrNoPostgres when there is nothing to run, *NoNameError when it
// can't run as this user.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Getenv == nil {
		return nil, errors.New("private PostgreSQL: Config.Getenv is missing")
	}
	s := &Server{cfg: cfg, log: cfg.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	err := s.prepare(ctx)
	if err != nil {
		err = fmt.Errorf("prepare a private PostgreSQL: %w", err)
	} else {
		err = s.Start(ctx)
	}
	switch {
	case err == nil:
		return s, nil
	case strings.Contains(err.Error(), "could not look up effective user ID"): // PostgreSQL's own words
		err = &NoNameError{UID: s.home.uid}
	}
	return nil, errors.Join(err, s.Close())
}

// NoNameError says that PostgreSQL does not run because the user has no name, as in containers that are run by a number.
type NoNameError struct{ UID int }

// Error tells what to do.
func (e *NoNameError) Error() string {
	return fmt.Sprintf("PostgreSQL does not run as uid %d, which has no entry in /etc/passwd. Set DATABASE_URL (TEST_DATABASE_URL for tests) "+
		"to use a server of yours, or add an entry such as app:x:%[1]d:0::/:/bin/sh, or run this as a user that has one", e.UID)
}

// prepare brings the folder to the point where the server can be started on it.
func (s *Server) prepare(ctx context.Context) error {
	var err error
	if s.home, err = openHome(ctx, s.cfg, s.log); err != nil {
		return err
	}
	major, err := s.home.dataVersion()
	if err != nil {
		return err
	}
	s.bin, err = finder{cfg: s.cfg, account: s.home.account}.find(ctx, major, s.home.data())
	if err != nil {
		return err
	}
	if s.sockets, err = s.home.socketFolder(); err != nil {
		return err
	}
	if err := s.home.removeLeftovers(); err != nil {
		return err
	}
	if major == "" {
		return s.initialise(ctx)
	}
	return nil
}

// URL is the address of a database, for pgx and libpq. It stays the same for as long as the Server lives, also while
// the server is stopped.
func (s *Server) URL(database string) string {
	// The port is spelled out because clients would otherwise take it from PGPORT.
	query := url.Values{"host": {s.sockets}, "port": {port}, "user": {superuser}}
	// libpq and pgx read + as itself, not as a space.
	address := url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: strings.ReplaceAll(query.Encode(), "+", "%20")}
	return address.String()
}

// Dir is the folder in use. It differs from Config.Dir when that was empty, or when root asked for a folder that the
// unprivileged account which runs PostgreSQL cannot reach.
func (s *Server) Dir() string { return s.home.dir }

// Stop shuts the server down cleanly, disconnecting its clients, and waits for the end. When the context ends first
// the shutdown goes on. Stopping a stopped server does nothing.
func (s *Server) Stop(ctx context.Context) error { return s.halt(ctx, "INT") }

// Kill ends the server as a crash would, without a checkpoint: the next start recovers from the write-ahead log.
func (s *Server) Kill() error {
	// PostgreSQL's immediate shutdown, because killing the first process alone would leave its children holding the data
	// for a while; what is on disk is the same. It is bounded by the supervisor.
	return s.halt(context.Background(), "QUIT")
}

func (s *Server) halt(ctx context.Context, signal string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil
	}
	if err := s.proc.end(ctx, signal); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	return s.stopOrphans(ctx)
}

// stopOrphans covers a supervisor that was killed, so that nobody has stopped the server.
func (s *Server) stopOrphans(ctx context.Context) error {
	if s.proc.status != "" {
		return nil
	}
	if _, err := s.home.takeOver(ctx, s.home.data(), s.log); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	return nil
}

// Start starts the server again after Stop, Kill or a crash, on the same data and address, and returns when it accepts
// connections. Starting a running server does nothing. A server that ends while it starts is an error with the end of
// its log.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errors.New("start PostgreSQL: it is closed")
	case s.proc != nil && s.proc.running():
		return nil
	}
	// The supervisor of a killed owner may start its server after we looked for one. Only one of the two gets the data:
	// if ours is refused, the other is stopped and ours tries again.
	for attempt := 1; ; attempt++ {
		if _, err := s.home.takeOver(ctx, s.home.data(), s.log); err != nil {
			return fmt.Errorf("start PostgreSQL: %w", err)
		}
		err := s.launch(ctx)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("start PostgreSQL: %w", err)
		if !errors.Is(err, errEnded) || attempt == 3 {
			return err
		}
		if found, takeErr := s.home.takeOver(ctx, s.home.data(), s.log); takeErr != nil || !found {
			return errors.Join(err, takeErr)
		}
	}
}

// launch starts the server once and waits until it accepts connections.
func (s *Server) launch(ctx context.Context) error {
	if err := s.home.freshSockets(s.sockets); err != nil {
		return err
	}
	logFile, err := s.home.openLog()
	if err != nil {
		return err
	}
	defer logFile.Close()
	begin := logEnd(logFile)
	p, err := s.home.supervise(logFile, s.temporary(), append([]string{filepath.Join(s.bin, "postgres")}, s.arguments()...))
	if err != nil {
		return err
	}
	if s.proc != nil {
		// Only now: until here the previous supervisor was the one to remove temporary folders if we were killed.
		s.proc.keep()
	}
	s.proc = p
	if err := awaitReady(ctx, p, s.home.data()); err != nil {
		// Not bounded by the context, which may be what has ended, but by the supervisor.
		return errors.Join(fmt.Errorf("%w; its log ends:\n%s", err, logTail(s.home.log(), begin)),
			p.end(context.Background(), "INT"))
	}
	return nil
}

func (s *Server) arguments() []string {
	settings := map[string]string{}
	if s.cfg.Ephemeral {
		settings["fsync"] = "off"
		settings["synchronous_commit"] = "off"
		settings["full_page_writes"] = "off"
		settings["shared_buffers"] = "32MB"
		settings["max_connections"] = "200"
	}
	maps.Copy(settings, s.cfg.Parameters)
	arguments := []string{"-D", s.home.data()}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		arguments = append(arguments, "-c", name+"="+settings[name])
	}
	// SECURITY: the server trusts whoever can connect, which is right only because nobody else can: it has no network
	// port, and its socket is in a folder of mode 0700. These settings come last because the last one wins.
	return append(arguments,
		"-c", "listen_addresses=",
		"-c", `unix_socket_directories="`+strings.ReplaceAll(s.sockets, `"`, `""`)+`"`,
		"-c", "unix_socket_permissions=0700",
		"-c", "port="+port)
}

// temporary lists the folders that must not outlive us.
func (s *Server) temporary() []string {
	var folders []string
	if s.home.temporary {
		folders = append(folders, s.home.dir)
	}
	if s.sockets != "" && s.sockets != s.home.run() {
		folders = append(folders, s.sockets)
	}
	return folders
}

// Close stops the server, removes what is temporary and gives the folder free. Closing again does nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	if s.proc != nil {
		s.proc.release(time.Minute)
		errs = append(errs, s.stopOrphans(context.Background()))
	}
	for _, folder := range s.temporary() {
		if err := os.RemoveAll(folder); err != nil {
			errs = append(errs, fmt.Errorf("remove a temporary folder: %w", err))
		}
	}
	// Last: until here nobody else may use the folder.
	return errors.Join(append(errs, unlock(s.home.lock))...)
}
