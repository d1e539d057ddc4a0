package config

import (
	"log/slog"
	"strings"
)

// Warn logs what is odd about the settings, and variables of the environment ("NAME=value") that are probably meant to be one.
func (s *Settings) Warn(environ []string, log *slog.Logger) {
	for _, warning := range s.warnings {
		log.Warn(warning)
	}
	table := Table()
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		meant := ""
		for _, s := range table {
			if s.Name == name {
				meant = ""
				break
			}
			if isMisspelt(name, s.Name) {
				meant = s.Name
			}
		}
		if meant != "" {
			log.Warn("an environment variable is no setting, and is ignored", "variable", name, "meant", meant)
		}
	}
}

// isMisspelt reports whether two edits at most lead from one name to the other, of one letter each or of two that are swapped. Case
// and the kind of dash don't count. Short names are too much alike, and another first letter makes another name: SSL_CERT_FILE is Go's.
func isMisspelt(name, setting string) bool {
	normal := strings.NewReplacer("-", "_", ".", "_")
	a, b := normal.Replace(strings.ToUpper(name)), normal.Replace(strings.ToUpper(setting))
	const edits, shortest = 2, 6
	if len(a) < shortest || a[0] != b[0] || len(a)-len(b) > edits || len(b)-len(a) > edits {
		return false
	}
	most := min(edits, len(b)/4)
	// The optimal string alignment distance, a row of it at a time.
	var before, last []int
	for i := range len(a) + 1 {
		row := make([]int, len(b)+1)
		for j := range row {
			switch {
			case i == 0:
				row[j] = j
			case j == 0:
				row[j] = i
			case a[i-1] == b[j-1]:
				row[j] = last[j-1]
			default:
				row[j] = 1 + min(last[j-1], last[j], row[j-1])
				if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
					row[j] = min(row[j], 1+before[j-2])
				}
			}
		}
		before, last = last, row
	}
	return last[len(b)] <= most
}
