package privatepg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// lockFolder takes the folder's lock, which the kernel releases when we end in whatever way. While a living process has
// it, the error is an *InUseError.
func lockFolder(ctx context.Context, dir string) (*os.File, error) {
	file, err := openOwned(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("lock the folder: %w", err)
	}
	// Written before it is cut: whoever reads in between finds our number in the first line, not an empty file.
	line := strconv.Itoa(os.Getpid()) + "\n"
	if err = flock(ctx, file, dir); err == nil {
		_, err = file.WriteAt([]byte(line), 0)
	}
	if err == nil {
		err = file.Truncate(int64(len(line)))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the folder: %w", err), file.Close())
	}
	return file, nil
}

// unlock gives the lock back. Closing the file alone would leave it to a child that we are just starting.
func unlock(lock *os.File) error {
	if lock == nil {
		return nil
	}
	return errors.Join(syscall.Flock(int(lock.Fd()), syscall.LOCK_UN), lock.Close())
}

func flock(ctx context.Context, file *os.File, dir string) error {
	const patience = time.Second
	seen := 0
	for waited := time.Duration(0); ; waited += pollInterval {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		// A number counts when it is that of a living process and is still there at the second look: a new owner needs a
		// moment to write its own, and for a moment the lock of a dead one lives on in a child that it was just starting.
		content, _ := os.ReadFile(file.Name()) // unreadable: the number stays 0
		pid := parsePID(content)
		switch {
		case pid != 0 && pid == seen && !gone(pid):
			return &InUseError{Dir: dir, PID: pid}
		case waited >= patience:
			return &InUseError{Dir: dir}
		}
		seen = pid
		if err := pause(ctx, pollInterval); err != nil {
			return err
		}
	}
}

// openOwned opens a file for the owner of its folder, whom root may be visiting.
func openOwned(path string, flags int) (*os.File, error) {
	file, err := os.OpenFile(path, flags|syscall.O_NOFOLLOW, 0o600)
	if err != nil || os.Geteuid() != 0 {
		return file, err
	}
	// SECURITY: a link of either kind could point root to any file.
	info, err := file.Stat()
	if err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Nlink != 1 || !info.Mode().IsRegular() {
			err = fmt.Errorf("%s must be a plain file without links", path)
		}
	}
	if err == nil {
		info, err = os.Stat(filepath.Dir(path))
	}
	if err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			err = file.Chown(int(stat.Uid), int(stat.Gid))
		}
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}
