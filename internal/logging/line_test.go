package logging

import (
	"bytes"
	"log/slog"
	"math"
	"regexp"
	"testing"
)

// FuzzLine: a request's line is what slog makes of the same attributes, byte for byte.
func FuzzLine(f *testing.F) {
	for _, text := range []string{"", "plain ~", `"quoted\`, "<&>'", "new\nline\ttab\r\b\f\x00\x1f\x7f", "é €\u2028\u2029😀", "\xff\xc3(\xed\xa0\x80", "{{%s}}"} {
		f.Add(text, int64(len(text)), 0.001*float64(len(text)), int(slog.LevelInfo))
	}
	f.Add("least", int64(math.MinInt64), 1e-7, int(slog.LevelError))
	f.Add("most", int64(math.MaxInt64), 1.5e21, int(slog.LevelInfo)+1)
	f.Add("debug", int64(0), math.Copysign(0, -1), int(slog.LevelDebug))
	when := regexp.MustCompile(`^({"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)"`)
	f.Fuzz(func(t *testing.T, text string, whole int64, fraction float64, level int) {
		if math.IsNaN(fraction) || math.IsInf(fraction, 0) {
			return // no duration is, and JSON has no word for them
		}
		attrs := []slog.Attr{
			slog.String("text", text), slog.Int64("whole", whole), slog.Float64("fraction", fraction),
		}
		logged := func(write func(*slog.Logger)) []byte {
			var out bytes.Buffer
			log, flush := New(&out, slog.LevelInfo, false)
			write(log)
			if level >= int(slog.LevelWarn) && out.Len() == 0 {
				t.Error("a warning waits for other lines")
			}
			flush()
			if out.Len() > 0 && !when.Match(out.Bytes()) {
				t.Errorf("the time of %s", out.Bytes())
			}
			return when.ReplaceAll(out.Bytes(), nil)
		}
		got := logged(func(log *slog.Logger) { Line(t.Context(), log, slog.Level(level), text, attrs) })
		want := logged(func(log *slog.Logger) { log.LogAttrs(t.Context(), slog.Level(level), text, attrs...) })
		if !bytes.Equal(got, want) {
			t.Errorf("%s, slog has %s", got, want)
		}
		if (len(got) > 0) != (level >= int(slog.LevelInfo)) {
			t.Errorf("a line of level %d is %q", level, got)
		}
	})
}

// A logger that is not one of ours, or of text, or has attributes of its own, writes the line as it writes others.
func TestLineOfAnyLogger(t *testing.T) {
	attrs := []slog.Attr{slog.String("path", "/a b"), slog.Bool("other", true)}
	for name, logger := range map[string]func(*bytes.Buffer) (*slog.Logger, func()){
		"text": func(out *bytes.Buffer) (*slog.Logger, func()) { return New(out, slog.LevelInfo, true) },
		"slog's": func(out *bytes.Buffer) (*slog.Logger, func()) {
			return slog.New(slog.NewJSONHandler(out, nil)), func() {}
		},
		"ours, for another kind of value": func(out *bytes.Buffer) (*slog.Logger, func()) { return New(out, slog.LevelInfo, false) },
		"with attributes": func(out *bytes.Buffer) (*slog.Logger, func()) {
			log, flush := New(out, slog.LevelInfo, false)
			return log.With("server", "one").WithGroup("group"), flush
		},
	} {
		var got, want bytes.Buffer
		log, flush := logger(&got)
		Line(t.Context(), log, slog.LevelInfo, "request", attrs)
		flush()
		log, flush = logger(&want)
		log.LogAttrs(t.Context(), slog.LevelInfo, "request", attrs...)
		flush()
		when := regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.+Z-]*`)
		if g, w := when.ReplaceAll(got.Bytes(), nil), when.ReplaceAll(want.Bytes(), nil); !bytes.Equal(g, w) || len(g) == 0 {
			t.Errorf("%s: %s instead of %s", name, g, w)
		}
	}
}

// A line takes no memory of its own: there is one for each request.
func TestLineTakesNoMemory(t *testing.T) {
	log, flush := New(discard{}, slog.LevelInfo, false)
	defer flush()
	attrs := []slog.Attr{slog.String("path", "/v1.0/me"), slog.Int("status", 200), slog.Float64("duration_ms", 0.123)}
	if n := testing.AllocsPerRun(1000, func() { Line(t.Context(), log, slog.LevelInfo, "request", attrs) }); n >= 1 {
		t.Errorf("%v pieces of memory a line", n)
	}
}

type discard struct{}

func (discard) Write(line []byte) (int, error) { return len(line), nil }
