// Package buildinfo says which version of the program this is.
package buildinfo

import (
	"cmp"
	"runtime"
	"runtime/debug"
)

// Set by the linker, see the Makefile.
var (
	version string
	commit  string
)

// Info is what is known of a build. What is not known is "unknown".
type Info struct {
	Version  string // a tag, or the newest one with the number of commits since; of a go install the module's
	Commit   string // a hash
	Go       string // the Go release, such as go1.26.8
	Platform string // such as linux/amd64
}

// Read returns what the linker was told, else what Go has noted by itself.
func Read() Info {
	info := Info{Version: version, Commit: commit, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if noted, ok := debug.ReadBuildInfo(); ok {
		info.Version = cmp.Or(info.Version, noted.Main.Version)
		for _, setting := range noted.Settings {
			if setting.Key == "vcs.revision" {
				info.Commit = cmp.Or(info.Commit, setting.Value)
			}
		}
	}
	info.Version, info.Commit = cmp.Or(info.Version, "unknown"), cmp.Or(info.Commit, "unknown")
	return info
}
