package servertest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// Edit replaces text that stands once in a file of the program.
type Edit struct{ File, Text, Instead string }

// Overlay returns the argument of go build with which the server is built as it would be after the edits, and with other files besides: from
// the absolute path of each to that of what takes its place. What the build reads is put into a folder of its own in dir; root is the module's
// folder. So a test takes something out of the program that has no switch for it. It returns an error where a text does not stand in its file
// exactly once.
func Overlay(root, dir string, edits []Edit, others map[string]string) (argument string, err error) {
	if dir, err = os.MkdirTemp(dir, "overlay"); err != nil {
		return "", err
	}
	sources := map[string]string{}
	for _, e := range edits {
		if _, read := sources[e.File]; !read {
			source, err := os.ReadFile(filepath.Join(root, e.File))
			if err != nil {
				return "", err
			}
			sources[e.File] = string(source)
		}
		if strings.Count(sources[e.File], e.Text) != 1 {
			return "", fmt.Errorf("%q does not stand once in %s any more", e.Text, e.File)
		}
		sources[e.File] = strings.Replace(sources[e.File], e.Text, e.Instead, 1)
	}
	replaced := maps.Clone(others)
	if replaced == nil {
		replaced = map[string]string{}
	}
	for file, source := range sources {
		original, err := filepath.Abs(filepath.Join(root, file))
		if err != nil {
			return "", err
		}
		replaced[original] = filepath.Join(dir, strings.ReplaceAll(file, "/", "-"))
		if err := os.WriteFile(replaced[original], []byte(source), 0o600); err != nil {
			return "", err
		}
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": replaced})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return "-overlay=" + path, os.WriteFile(path, overlay, 0o600)
}
