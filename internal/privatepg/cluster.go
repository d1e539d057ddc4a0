package privatepg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	superuser  = "postgres"
	initPrefix = "init-"
)

// dataVersion returns the major version of the data, or "" when there is none yet.
func (h home) dataVersion() (string, error) {
	info, err := os.Lstat(h.data())
	var content []byte
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err == nil && !info.IsDir():
		err = errors.New("it is no folder")
	case err == nil:
		content, err = os.ReadFile(filepath.Join(h.data(), "PG_VERSION"))
	}
	if err != nil {
		return "", fmt.Errorf("%s is not PostgreSQL's, remove it: %w", h.data(), err)
	}
	if h.switching && ownerOf(info) == 0 {
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

// initialise creates the cluster beside its final place and renames it when it is complete, so that an interrupted
// initdb leaves no data folder that can neither be used nor be created anew.
func (s *Server) initialise(ctx context.Context) error {
	s.log.Info("creating a database cluster", "folder", s.dir, "programs", s.bin)
	entries, err := os.ReadDir(s.dir)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), initPrefix) { // it was interrupted
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, entry.Name())))
		}
	}
	if err != nil {
		return err
	}
	folder, err := os.MkdirTemp(s.dir, initPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder) // gone after the rename; otherwise the next start removes it
	if err := s.own(folder); err != nil {
		return err
	}
	// C.UTF-8 sorts alike on every machine but does not exist on all of them.
	for _, locale := range []string{"C.UTF-8", "C"} {
		if err = s.initdb(ctx, folder, locale); err == nil {
			return os.Rename(folder, s.data())
		}
		if ctx.Err() != nil {
			break
		}
	}
	return err
}

func (s *Server) initdb(ctx context.Context, folder, locale string) error {
	// --auth=trust: see the note on the socket where the server is started.
	command := []string{filepath.Join(s.bin, "initdb"), "--pgdata", folder, "--username", superuser, "--auth=trust",
		"--encoding=UTF8", "--locale=" + locale}
	if s.cfg.Ephemeral {
		command = append(command, "--no-sync")
	}
	p, err := s.supervise(append(s.temporaryFolders(), folder), command...)
	if err != nil {
		return err
	}
	select {
	case <-p.ended:
		p.dismiss()
	case <-ctx.Done():
		p.release()
		return ctx.Err()
	}
	if p.status != "0" {
		return p.failed(fmt.Errorf("initdb ended with status %q", p.status))
	}
	return nil
}
