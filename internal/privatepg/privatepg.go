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
)

// ErrNoPostgres says that no PostgreSQL is installed, and what to do.
var ErrNoPostgres = errors.New("there is no PostgreSQL on this machine: apt-get install postgresql (Debian), " +
	"brew install postgresql@17 (macOS), or set DATABASE_URL (TEST_DATABASE_URL for tests) to use a server of yours")

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

	places []string // for tests: where PostgreSQL is looked for after PATH; nil means the usual ones
}

// Server is a PostgreSQL that belongs to this process. Its methods may be called concurrently.
type Server struct {
	home
	cfg     Config
	log     *slog.Logger
	bin     string // folder of PostgreSQL's programs
	sockets string // folder of the Unix socket

	mu     sync.Mutex
	proc   *process // the last one started, nil before the first
	closed bool
}

// Start returns a server that accepts connections, on existing data or on a new cluster. The context bounds the start
// only. Errors: *InUseError when another process has the folder, ErrNoPostgres when there is nothing to run.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, log: cfg.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	err := s.prepare(ctx)
	if err == nil {
		err = s.Start(ctx)
	}
	if err == nil {
		return s, nil
	}
	if strings.Contains(err.Error(), "could not look up effective user ID") { // PostgreSQL's own words, in a container for one
		err = fmt.Errorf("PostgreSQL does not run as uid %d, which has no entry in /etc/passwd. Set DATABASE_URL (TEST_DATABASE_URL for tests) "+
			"to use a server of yours, or add an entry such as app:x:%[1]d:0::/:/bin/sh, or run this as a user that has one", s.uid)
	}
	return nil, errors.Join(fmt.Errorf("private PostgreSQL: %w", err), s.Close())
}

// prepare brings the folder to the point where the server can be started on it.
func (s *Server) prepare(ctx context.Context) error {
	open := openHome
	if s.cfg.Dir == "" {
		open = openTemporary
	}
	var err error
	if s.home, err = open(ctx, s.cfg, s.log); err != nil {
		return err
	}
	major, err := s.dataVersion()
	if err != nil {
		return err
	}
	searched := places
	if s.cfg.places != nil {
		searched = s.cfg.places
	}
	if s.bin, err = findPrograms(ctx, s.account, s.cfg.Getenv("PATH"), searched, major, s.data()); err != nil {
		return err
	}
	if major == "" {
		if err := s.initialise(ctx); err != nil {
			return fmt.Errorf("create a cluster: %w", err)
		}
	}
	s.sockets, err = s.socketFolder()
	return err
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
func (s *Server) Dir() string { return s.dir }

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
	err := s.proc.end(ctx, signal)
	if err == nil {
		err = s.takeOver(ctx, s.log) // if the supervisor was killed, nobody has stopped the server
	}
	if err != nil {
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
		err := s.takeOver(ctx, s.log)
		if err == nil {
			err = s.launch(ctx)
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, errEnded) || attempt == 3 {
			return fmt.Errorf("start PostgreSQL: %w", err)
		}
	}
}

// launch starts the server once and waits until it accepts connections.
func (s *Server) launch(ctx context.Context) error {
	if err := s.freshSockets(s.sockets); err != nil {
		return err
	}
	p, err := s.supervise(s.temporaryFolders(), append([]string{filepath.Join(s.bin, "postgres")}, s.arguments()...)...)
	if err != nil {
		return err
	}
	if s.proc != nil {
		// Only now: until here the previous supervisor was the one to remove temporary folders if we were killed.
		s.proc.dismiss()
	}
	s.proc = p
	if err := p.awaitReady(ctx); err != nil {
		// Not bounded by the context, which may be what has ended, but by the supervisor.
		return errors.Join(p.failed(err), p.end(context.Background(), "INT"))
	}
	return nil
}

func (s *Server) arguments() []string {
	settings := map[string]string{}
	if s.cfg.Ephemeral {
		settings = map[string]string{"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off",
			"shared_buffers": "32MB", "max_connections": "200"}
	}
	maps.Copy(settings, s.cfg.Parameters)
	arguments := []string{"-D", s.data()}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		arguments = append(arguments, "-c", name+"="+settings[name])
	}
	// SECURITY: the server trusts every client that can connect, which is right only because nobody else can: it has no network
	// port, and its socket is in a folder of mode 0700. These settings come last because the last one wins.
	return append(arguments,
		"-c", "listen_addresses=",
		"-c", `unix_socket_directories="`+strings.ReplaceAll(s.sockets, `"`, `""`)+`"`,
		"-c", "unix_socket_permissions=0700",
		"-c", "port="+port)
}

// temporaryFolders lists the folders that must not outlive us.
func (s *Server) temporaryFolders() []string {
	var folders []string
	if s.temporary {
		folders = append(folders, s.dir)
	}
	if s.sockets != "" && s.sockets != s.run() {
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
	var err error
	if s.proc != nil {
		s.proc.release()
		err = s.takeOver(context.Background(), s.log)
	}
	for _, folder := range s.temporaryFolders() {
		err = errors.Join(err, os.RemoveAll(folder))
	}
	// Last: until here nobody else may use the folder.
	return errors.Join(err, unlock(s.lock))
}
