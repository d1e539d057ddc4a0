package privatepg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// finder looks for PostgreSQL's binaries that the account can run.
type finder struct {
	cfg     Config
	log     *slog.Logger
	account account
}

// find returns a folder with the binaries: the first one, or for existing data of a major version the first of that
// version. It downloads them when there are none.
func (f finder) find(ctx context.Context, major, data string) (string, error) {
	cache, cacheErr := f.cache()
	var others []string
	for _, folder := range f.folders(cache) {
		bin, version, ok := f.usable(ctx, folder)
		switch {
		case !ok:
		case major == "" || version == major:
			return bin, nil
		case !slices.Contains(others, version):
			others = append(others, version)
		}
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("look for PostgreSQL: %w", err)
	}
	if len(others) > 0 {
		return "", fmt.Errorf("the data in %s is of PostgreSQL %s, but what is installed is PostgreSQL %s: "+
			"remove that folder, which deletes the data, or install PostgreSQL %s",
			data, major, strings.Join(others, " and "), major)
	}
	if cacheErr != nil {
		return "", fmt.Errorf("%w: %w", ErrNoPostgres, cacheErr)
	}
	bin, err := f.download(ctx, cache, major)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoPostgres, err)
	}
	return bin, nil
}

// folders lists where binaries may be, the preferred first.
func (f finder) folders(cache string) []string {
	patterns := f.cfg.Folders
	if patterns == nil {
		patterns = []string{
			"/usr/lib/postgresql/*/bin",
			"/opt/homebrew/opt/postgresql*/bin",
			"/usr/local/opt/postgresql*/bin",
			"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
		}
	}
	var folders []string
	for _, folder := range filepath.SplitList(f.cfg.Getenv("PATH")) {
		if filepath.IsAbs(folder) { // what a relative one means depends on where we were started
			folders = append(folders, folder)
		}
	}
	if cache != "" {
		patterns = append(slices.Clone(patterns), filepath.Join(cache, "postgresql-*", "bin"))
	}
	for _, pattern := range patterns {
		matches, _ := filepath.Glob(pattern) // the only error is a bad pattern, which matches nothing
		slices.SortStableFunc(matches, func(a, b string) int { return slices.Compare(versionIn(b), versionIn(a)) })
		folders = append(folders, matches...)
	}
	return folders
}

// versionIn returns the numbers in the name of the folder around a bin folder, so that 9.6 sorts before 15.
func versionIn(bin string) []int {
	var numbers []int
	for _, digits := range regexp.MustCompile(`\d+`).FindAllString(filepath.Base(filepath.Dir(bin)), -1) {
		number, err := strconv.Atoi(digits)
		if err != nil {
			return nil
		}
		numbers = append(numbers, number)
	}
	return numbers
}

// usable resolves a folder, because PostgreSQL finds its other files relative to where it really is, and tells the
// major version of what the account can run there.
func (f finder) usable(ctx context.Context, folder string) (bin, major string, ok bool) {
	initdb, err := filepath.EvalSymlinks(filepath.Join(folder, "initdb"))
	if err != nil {
		return "", "", false
	}
	bin = filepath.Dir(initdb)
	for _, name := range []string{"initdb", "postgres"} {
		info, err := os.Stat(filepath.Join(bin, name))
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
			return "", "", false
		}
	}
	output, err := f.version(ctx, filepath.Join(bin, "postgres"))
	if err != nil {
		return "", "", false
	}
	match := regexp.MustCompile(`\(PostgreSQL\) (\d+)`).FindSubmatch(output)
	if match == nil {
		return "", "", false
	}
	return bin, string(match[1]), true
}

// version asks a server for its version.
func (f finder) version(ctx context.Context, postgres string) ([]byte, error) {
	const tries = 20
	for try := 1; ; try++ {
		output, err := f.account.command(exec.CommandContext(ctx, postgres, "--version")).Output()
		// A file that we have just unpacked counts as being written to while a child that was started meanwhile has not
		// yet closed what it inherited.
		if !errors.Is(err, syscall.ETXTBSY) || try == tries {
			return output, err
		}
		if err := pause(ctx, pollInterval); err != nil {
			return nil, err
		}
	}
}

// cache is the folder of downloaded binaries.
func (f finder) cache() (string, error) {
	switch {
	case f.cfg.CacheDir != "":
		return filepath.Abs(f.cfg.CacheDir)
	case f.account.switching:
		// Root's home is closed to the account.
		return filepath.Join(systemFolder, "binaries"), nil
	}
	base := f.cfg.Getenv("XDG_CACHE_HOME")
	if home := f.cfg.Getenv("HOME"); base == "" && home != "" {
		base = filepath.Join(home, ".cache")
	}
	if !filepath.IsAbs(base) {
		return "", errors.New("there is no folder to download to: neither HOME nor XDG_CACHE_HOME is set")
	}
	return filepath.Join(base, "accesskeys", "postgresql"), nil
}

// download fetches PostgreSQL into the cache, or finds that another process has just done so.
func (f finder) download(ctx context.Context, cache, major string) (string, error) {
	// The library's versions, the one for new data first.
	versions := []embeddedpostgres.PostgresVersion{embeddedpostgres.V18, embeddedpostgres.V17, embeddedpostgres.V16,
		embeddedpostgres.V15, embeddedpostgres.V14, embeddedpostgres.V13, embeddedpostgres.V12}
	index := slices.IndexFunc(versions, func(version embeddedpostgres.PostgresVersion) bool {
		return major == "" || strings.HasPrefix(string(version), major+".")
	})
	if index < 0 {
		return "", fmt.Errorf("PostgreSQL %s cannot be downloaded", major)
	}
	version := versions[index]
	target := filepath.Join(cache, "postgresql-"+string(version))
	lock, err := f.lockCache(ctx, cache)
	if err != nil {
		return "", err
	}
	done := make(chan error, 1)
	// The library takes no context, so that a stalled download cannot be ended, only left: this goroutine then goes with
	// the process. All it does later is to complete the cache, under the lock.
	go func() {
		defer func() { _ = unlock(lock) }() // there is nobody left to tell
		if _, _, ok := f.usable(ctx, filepath.Join(target, "bin")); ok {
			done <- nil
			return
		}
		f.log.Info("downloading PostgreSQL", "version", string(version), "to", target)
		done <- f.fetch(ctx, version, cache, target)
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("download PostgreSQL %s: %w", version, err)
	}
	return filepath.EvalSymlinks(filepath.Join(target, "bin"))
}

// lockCache waits for its turn, since several test binaries may start at once.
func (f finder) lockCache(ctx context.Context, cache string) (*os.File, error) {
	if f.account.switching && f.cfg.CacheDir == "" {
		if err := errors.Join(rootFolder(systemFolder), rootFolder(cache)); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("create the folder to download to: %w", err)
	}
	for {
		lock, err := lockFolder(ctx, cache)
		var busy *InUseError
		if !errors.As(err, &busy) {
			return lock, err
		}
		if err := pause(ctx, 10*pollInterval); err != nil {
			return nil, fmt.Errorf("wait for the download of process %d: %w", busy.PID, err)
		}
	}
}

// fetch downloads beside the target and renames, so that what is there is complete and runs.
func (f finder) fetch(ctx context.Context, version embeddedpostgres.PostgresVersion, cache, target string) error {
	work := filepath.Join(cache, "download")
	if err := os.RemoveAll(work); err != nil {
		return fmt.Errorf("remove an interrupted download: %w", err)
	}
	if err := passage(work); err != nil { // the account is to try what is in it
		return err
	}
	defer os.RemoveAll(work)
	binaries, runtime := filepath.Join(work, "postgresql"), filepath.Join(work, "runtime")
	config := embeddedpostgres.DefaultConfig().
		Version(version).
		CachePath(filepath.Join(work, "archive")).
		BinariesPath(binaries).
		RuntimePath(runtime).
		DataPath(filepath.Join(work, "data")).
		Logger(io.Discard). // its errors carry what it would print
		Port(0).
		// SECURITY: the library can only download in order to start, on a network port and with a known password. initdb
		// refuses this name, and root, so it never gets that far.
		Username("pg_refused")
	if f.cfg.DownloadURL != "" {
		config = config.BinaryRepositoryURL(strings.TrimRight(f.cfg.DownloadURL, "/"))
	}
	// The library tries a port on this name first, and calls any failure a port in use.
	if _, err := net.DefaultResolver.LookupHost(ctx, "localhost"); err != nil {
		return fmt.Errorf("the name localhost is not known (is there an /etc/hosts?): %w", err)
	}
	library := embeddedpostgres.NewDatabase(config)
	startErr := library.Start()
	if startErr == nil {
		if err := library.Stop(); err != nil {
			return fmt.Errorf("stop what was only to be downloaded: %w", err)
		}
	}
	// The library creates this folder when it has unpacked everything, and then tries to start.
	if _, err := os.Stat(runtime); err != nil {
		return startErr
	}
	if err := filepath.WalkDir(binaries, readable); err != nil {
		return fmt.Errorf("make the download readable: %w", err)
	}
	if _, _, ok := f.usable(ctx, filepath.Join(binaries, "bin")); !ok {
		return fmt.Errorf("what was downloaded to %s cannot be run by uid %d", cache, f.account.uid)
	}
	if err := os.RemoveAll(target); err != nil { // there is something only if it was damaged
		return err
	}
	return os.Rename(binaries, target)
}

// readable lets the account run what root unpacked under whatever umask.
func readable(path string, entry fs.DirEntry, err error) error {
	if err != nil || entry.Type()&fs.ModeSymlink != 0 {
		return err
	}
	info, err := entry.Info()
	if err != nil {
		return err
	}
	mode := info.Mode().Perm() | 0o444
	if mode&0o100 != 0 {
		mode |= 0o111
	}
	return os.Chmod(path, mode)
}
