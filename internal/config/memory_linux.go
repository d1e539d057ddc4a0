package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// memoryLimit is how many bytes this machine has, or less where a cgroup says so (cgroups(7)); 0 where that is not known.
func memoryLimit() uint64 { return memoryLimitIn("/") }

func memoryLimitIn(root string) uint64 {
	read := func(path string) []byte {
		content, _ := os.ReadFile(filepath.Join(root, path)) // what isn't there says nothing
		return bytes.TrimSpace(content)
	}
	least := uint64(0)
	limit := func(bytes uint64, err error) {
		if err == nil && bytes > 0 && (least == 0 || bytes < least) {
			least = bytes
		}
	}
	if _, rest, found := strings.Cut(string(read("proc/meminfo")), "MemTotal:"); found {
		kib, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
		limit(kib<<10, err)
	}
	// A cgroup is limited by those above it too. Within a container its own is the root.
	for line := range strings.Lines(string(read("proc/self/cgroup"))) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		folder, file := "sys/fs/cgroup", "memory.max" // of version 2
		switch {
		case strings.Contains(","+controllers+",", ",memory,"):
			folder, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		case controllers != "":
			continue
		}
		for ; ; path = filepath.Dir(path) {
			limit(strconv.ParseUint(string(read(filepath.Join(folder, path, file))), 10, 64))
			if path == "/" || path == "." || path == "" {
				break
			}
		}
	}
	return least
}
