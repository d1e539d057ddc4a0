package privatepg

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// places are where Debian's packages and Homebrew put PostgreSQL's programs. The Makefile has them, too.
var places = []string{
	"/usr/lib/postgresql/*/bin",
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
	"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
}

var (
	firstNumber = regexp.MustCompile(`\d+`)
	itsVersion  = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)
)

// findPrograms returns the first folder with PostgreSQL's programs, or for existing data of a major version the first of
// that version: on the path, then in the places, the newest first within each.
func findPrograms(ctx context.Context, a account, path string, places []string, major, data string) (string, error) {
	// What a relative folder means depends on where we were started.
	folders := slices.DeleteFunc(filepath.SplitList(path), func(folder string) bool { return !filepath.IsAbs(folder) })
	for _, place := range places {
		found, _ := filepath.Glob(place) // the only error is a bad pattern
		slices.SortStableFunc(found, func(a, b string) int { return versionIn(b) - versionIn(a) })
		folders = append(folders, found...)
	}
	var others []string
	for _, folder := range folders {
		bin, version := a.programsIn(ctx, folder)
		switch {
		case version == "":
		case major == "" || version == major:
			return bin, nil
		case !slices.Contains(others, version):
			others = append(others, version)
		}
	}
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("look for PostgreSQL: %w", ctx.Err())
	case len(others) == 0:
		return "", ErrNoPostgres
	}
	return "", fmt.Errorf("the data in %s is of PostgreSQL %s, but what is installed is PostgreSQL %s: "+
		"remove that folder, which deletes the data, or install PostgreSQL %s", data, major, strings.Join(others, " and "), major)
}

// versionIn returns the number in the name of the folder around a bin folder, so that 9.6 sorts before 15.
func versionIn(bin string) int {
	number, _ := strconv.Atoi(firstNumber.FindString(filepath.Base(filepath.Dir(bin)))) // without one it is the oldest
	return number
}

// programsIn returns the major version of the PostgreSQL in a folder, or "" where there is none that the account can
// run. The folder is resolved, because PostgreSQL finds its other files relative to where it really is.
func (a account) programsIn(ctx context.Context, folder string) (bin, major string) {
	initdb, err := filepath.EvalSymlinks(filepath.Join(folder, "initdb"))
	if err != nil {
		return "", ""
	}
	if _, err := exec.LookPath(initdb); err != nil { // cannot be run
		return "", ""
	}
	bin = filepath.Dir(initdb)
	output, _ := a.command(exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version")).Output()
	if match := itsVersion.FindSubmatch(output); match != nil {
		return bin, string(match[1])
	}
	return "", ""
}
