package privatepg

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// finder looks for PostgreSQL's binaries that the account can run.
type finder struct {
	cfg     Config
	account account
}

// find returns a folder with the binaries: the first one, or for existing data of a major version the first of that version.
func (f finder) find(ctx context.Context, major, data string) (string, error) {
	var others []string
	for _, folder := range f.folders() {
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
	return "", ErrNoPostgres
}

// folders lists where binaries may be, the preferred first.
func (f finder) folders() []string {
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
	output, err := f.account.command(exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version")).Output()
	if err != nil {
		return "", "", false
	}
	match := regexp.MustCompile(`\(PostgreSQL\) (\d+)`).FindSubmatch(output)
	if match == nil {
		return "", "", false
	}
	return bin, string(match[1]), true
}
