package privatepg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	if err = flock(ctx, file, dir); err == nil {
		// One write of one length: a reader finds a whole number.
		_, err = fmt.Fprintf(file, "%-10d\n", os.Getpid())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the folder: %w", err), file.Close())
	}
	return file, nil
}

func flock(ctx context.Context, file *os.File, dir string) error {
	seen := 0
	for range 100 {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		// A number counts when it is that of a living process and is still there at the second look: a new owner needs a
		// moment to write its own, and for a moment the lock of a dead one lives on in a child that it was just starting.
		content, _ := os.ReadFile(file.Name()) // unreadable: the number stays 0
		pid := parsePID(content)
		if pid != 0 && pid == seen && !gone(pid) {
			return &InUseError{Dir: dir, PID: pid}
		}
		seen = pid
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return &InUseError{Dir: dir}
}

// unlock gives the lock back. Closing the file alone would leave it to a child that we are just starting.
func unlock(lock *os.File) error {
	if lock == nil {
		return nil
	}
	return errors.Join(syscall.Flock(int(lock.Fd()), syscall.LOCK_UN), lock.Close())
}

// openOwned opens a file for the owner of its folder, whom root may be visiting.
func openOwned(path string, flags int) (*os.File, error) {
	file, err := os.OpenFile(path, flags|syscall.O_NOFOLLOW, 0o600)
	if err != nil || os.Geteuid() != 0 {
		return file, err
	}
	var stat, folder syscall.Stat_t
	err = errors.Join(syscall.Fstat(int(file.Fd()), &stat), syscall.Stat(filepath.Dir(path), &folder))
	// SECURITY: a link of either kind could point root to any file.
	if stat.Nlink != 1 || stat.Mode&syscall.S_IFMT != syscall.S_IFREG {
		err = errors.Join(err, fmt.Errorf("%s must be a plain file without links", path))
	}
	if err == nil {
		err = file.Chown(int(folder.Uid), int(folder.Gid))
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// pause is the time between two looks at something that is about to happen.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(10 * time.Millisecond):
		return nil
	}
}
