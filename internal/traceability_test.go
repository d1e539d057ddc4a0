package internal_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docs/traceability.md names the tests that show each promise. A promise without a test, or with one that was renamed away,
// fails here.
func TestEveryPromiseNamesTestsThatExist(t *testing.T) {
	t.Parallel()
	exist := map[string]bool{}
	declaration := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, pattern := range []string{"*_test.go", "*/*_test.go", "../cmd/*/*_test.go", "../test/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range declaration.FindAllStringSubmatch(string(source), -1) {
				exist[match[1]] = true
			}
		}
	}
	document, err := os.ReadFile("../docs/traceability.md")
	if err != nil {
		t.Fatal(err)
	}
	promises := 0
	for line := range strings.Lines(string(document)) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || strings.Contains(line, "---") || strings.Contains(line, "shown by") {
			continue
		}
		promises++
		named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(cells[2], -1)
		if len(named) == 0 {
			t.Errorf("no test is named: %s", line)
		}
		for _, name := range named {
			if !exist[name[1]] {
				t.Errorf("there is no test %s", name[1])
			}
		}
	}
	if promises < 90 {
		t.Errorf("only %d promises were read: has the table another form?", promises)
	}
}
