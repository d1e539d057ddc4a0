package config

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// What a cgroup allows is what there is, in whichever version it says so, and on whichever level.
func TestMemoryIsWhatTheCgroupAllows(t *testing.T) {
	t.Parallel()
	const all, cgroup, v2, v1 = uint64(16000000 << 10), "proc/self/cgroup", "sys/fs/cgroup/", "sys/fs/cgroup/memory/y/memory.limit_in_bytes"
	for name, c := range map[string]struct {
		files map[string]string
		want  uint64
	}{
		"no cgroup":       {nil, all},
		"version 2":       {map[string]string{cgroup: "0::/a/b\n", v2 + "a/b/memory.max": "1000000\n"}, 1000000},
		"one above":       {map[string]string{cgroup: "0::/a/b\n", v2 + "a/b/memory.max": "max\n", v2 + "a/memory.max": "2000000\n"}, 2000000},
		"in a container":  {map[string]string{cgroup: "0::/\n", v2 + "memory.max": "3000000\n"}, 3000000},
		"no limit":        {map[string]string{cgroup: "0::/a\n", v2 + "a/memory.max": "max\n"}, all},
		"version 1":       {map[string]string{cgroup: "5:cpu:/x\n4:memory:/y\n", v1: "4000000\n"}, 4000000},
		"version 1, none": {map[string]string{cgroup: "4:memory:/y\n", v1: "9223372036854771712\n"}, all},
	} {
		files := map[string]string{"proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\n"}
		maps.Copy(files, c.files)
		root := t.TempDir()
		for path, content := range files {
			path = filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := memoryLimitIn(root); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if got := memoryLimitIn(t.TempDir()); got != 0 {
		t.Errorf("nothing: %d", got)
	}
}
