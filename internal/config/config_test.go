package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// settingCase is what one setting should make of values. Every wrong value of a secret contains "hunter2".
type settingCase struct {
	name  string
	get   func(*Settings) any
	unset any            // what is loaded where it is not set
	right map[string]any // value to what is loaded
	wrong []string
	with  map[string]string // further settings that it needs

	needed bool // by those in with, so that it can't be left out
}

// asIs are values that are loaded as they stand.
func asIs(values ...string) map[string]any {
	right := map[string]any{}
	for _, value := range values {
		right[value] = value
	}
	return right
}

func settingCases() []settingCase {
	longest := strings.Repeat("語", 255)
	customer := map[string]string{"BOOTSTRAP_CUSTOMER": "acme"}
	rps := map[string]any{"0": 0.0, "0.5": 0.5, "25": 25.0, "1e9": 1e9}
	wrongRPS := []string{"-1", "many", "NaN", "Inf", "1e10", "10 ", "10/s"}
	wrongBurst := []string{"0", "-1", "1.5", "many", "2147483648"}
	return []settingCase{
		{
			name: "DATABASE_URL", get: func(s *Settings) any { return s.DatabaseURL.Reveal() }, unset: "",
			right: asIs("postgres://u:p@h:1/d", "host=h dbname=d user=u", "postgresql://h,i/d?a=b+c"),
			wrong: []string{
				"hunter2", "mysql://u:hunter2@h/d", "postgres://u:hunter2@h:port/d", "postgres://u:hunter2%zz@h/d",
				"postgres://u:p/hunter2@h/d", "postgres://u:hunter2@h/d?sslmode=nonsense", "host=h password = hunter2 port=x",
				"host=h password='hunter2 and a half' port=x", "postgres://h/d?password=hunter2&port=x",
				"postgres://u:hunter2@h/d?pool_max_conns=x", "postgres://u:hunter2@h/\nd?port=x",
				// A password that is not encoded, of which a part would be the host.
				"postgres://u:a@hunter2@h/d", "postgres://u:1/hunter2@h/d", "postgres://u:1#hunter2@h/d", "postgres://u:1?hunter2@h/d",
				"postgres://u:1@hunter2/x@h/d", "postgres://u:1@hunter2?x@h/d", "postgres://u:hunter2%@h/d", "postgres://u:hunter2%4@h/d",
				"postgres://u:hunter2\\@h/d", "postgres://u:hunter2 @h/d", "postgres://u:p@h/d?password=hunter2@x", "postgres://u:p@h/d#hunter2",
			},
		},
		{
			name: "LISTEN_ADDR", get: func(s *Settings) any { return s.ListenAddr }, unset: ":8080",
			right: asIs("127.0.0.1:0", "[::1]:65535", ":80"),
			wrong: []string{"8080", "localhost", "localhost:http", ":65536", ":-1", ":", "::1:80", "http://localhost:80"},
		},
		{
			name: "JWT_SECRET", get: func(s *Settings) any { return s.JWTSecret.Reveal() }, unset: "",
			right: asIs("hunter2-hunter2-hunter2-hunter2-", "éàüöä-éàüöä-éàüöä"), // 32 bytes
			wrong: []string{"hunter2", "hunter2-hunter2-hunter2-hunter2" /* 31 bytes */, "hunter2 hunter2 \n"},
		},
		{
			name: "JWT_SECRET_PREVIOUS", get: func(s *Settings) any { return s.JWTSecretPrevious.Reveal() }, unset: "",
			right: asIs("hunter2-hunter2-hunter2-hunter2-"),
			wrong: []string{"hunter2", "hunter2-hunter2-hunter2-hunter2"},
		},
		{
			name: "ACCESSKEY_MIN_EXPIRE", get: func(s *Settings) any { return s.AccessKeyMinExpire }, unset: int64(1),
			right: map[string]any{"1": int64(1), "86400": int64(86400), "3153600000": int64(3153600000)},
			wrong: []string{"0", "-1", "1.5", "1d", "3153600001", "9223372036854775808"},
		},
		{
			name: "TLS_CERT_FILE", get: func(s *Settings) any { return s.TLSCertFile },
			right: asIs("config_test.go"), wrong: []string{"no-such-file", "/root/../no-such-file"},
			needed: true, with: map[string]string{"TLS_KEY_FILE": "config_test.go"},
		},
		{
			name: "TLS_KEY_FILE", get: func(s *Settings) any { return s.TLSKeyFile },
			right: asIs("config_test.go"), wrong: []string{"no-such-file"},
			needed: true, with: map[string]string{"TLS_CERT_FILE": "config_test.go"},
		},
		{
			name: "SHUTDOWN_DELAY", get: func(s *Settings) any { return s.ShutdownDelay }, unset: time.Second,
			right: map[string]any{"0": time.Duration(0), "300ms": 300 * time.Millisecond, "5": 5 * time.Second, "60s": time.Minute},
			wrong: []string{"61s", "-1s", "1e1", "x"},
		},
		{
			name: "CACHE_LEASE", get: func(s *Settings) any { return s.CacheLease }, unset: 2 * time.Second,
			right: map[string]any{"0": 0 * time.Second, "0s": 0 * time.Second, "100ms": 100 * time.Millisecond, "20s": 20 * time.Second, "3": 3 * time.Second},
			wrong: []string{"99ms", "21", "20.1s", "-1s", "1e1", "x"},
		},
		{
			name: "CACHE_MAX_AGE", get: func(s *Settings) any { return s.CacheMaxAge }, unset: 10 * time.Minute,
			right: map[string]any{"1s": time.Second, "1": time.Second, "90m": 90 * time.Minute, "600": 10 * time.Minute, "24h": 24 * time.Hour},
			wrong: []string{"0", "0s", "999ms", "24h1s", "25h", "-1s", "1e1", "x"},
		},
		{
			name: "CACHE_SIZE", get: func(s *Settings) any { return s.CacheBytes }, unset: uint64(256 << 20),
			right: map[string]any{"1": uint64(1 << 20), "4096": uint64(4096 << 20)},
			wrong: []string{"0", "-1", "1.5", "64MB", "99999999999"},
		},
		{
			name: "AUDIENCE", get: func(s *Settings) any { return s.Audience }, unset: "",
			right: asIs("https://keys.example", longest),
			wrong: []string{longest + "語", "\xff"},
		},
		{
			name: "LOG_LEVEL", get: func(s *Settings) any { return s.LogLevel }, unset: slog.LevelInfo,
			right: map[string]any{
				"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError, "WARN": slog.LevelWarn,
			},
			wrong: []string{"verbose", "info+1", "0"},
		},
		{
			name: "LOG_FORMAT", get: func(s *Settings) any { return s.LogFormat }, unset: "json",
			right: asIs("json", "text"), wrong: []string{"xml", "json,text"},
		},
		{
			name: "RATE_LIMIT_AUTH_RPS", get: func(s *Settings) any { return s.AuthLimit.RPS }, unset: 10.0, right: rps, wrong: wrongRPS,
		},
		{
			name: "RATE_LIMIT_AUTH_BURST", get: func(s *Settings) any { return s.AuthLimit.Burst }, unset: 20,
			right: map[string]any{"1": 1, "2147483647": 2147483647}, wrong: wrongBurst,
		},
		{
			name: "RATE_LIMIT_V1_RPS", get: func(s *Settings) any { return s.V1Limit.RPS }, unset: 0.0, right: rps, wrong: wrongRPS,
		},
		{
			name: "RATE_LIMIT_V1_BURST", get: func(s *Settings) any { return s.V1Limit.Burst }, unset: 100,
			right: map[string]any{"1": 1, "7": 7}, wrong: wrongBurst,
		},
		{
			name: "TRUSTED_PROXIES", get: func(s *Settings) any { return s.TrustedProxies }, unset: []netip.Prefix(nil),
			right: map[string]any{
				"10.0.0.0/8":           []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
				"10.0.0.0/8, ::1/128 ": []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")},
			},
			wrong: []string{"10.0.0.1", "10.0.0.0/33", "10.0.0.0/8,", "proxy.example", "*",
				// Whole address families, and halves of them.
				"0.0.0.0/0", "::/0", "10.0.0.0/8,0.0.0.0/0", "0.0.0.0/1,128.0.0.0/1", "64.0.0.0/7", "::/1,8000::/1", "2000::/3", "::ffff:0:0/96", "::ffff:0.0.0.0/97"},
		},
		{
			name: "SIGNUP", get: func(s *Settings) any { return s.Signup }, unset: false,
			right: map[string]any{"true": true, "false": false}, wrong: []string{"yes", "1", "True", "true "},
		},
		{
			name: "SMTP_URL", get: func(s *Settings) any { return s.SMTPURL.Reveal() }, unset: "",
			right: asIs("smtp://u:hunter2@mail.example:2525", "smtps://mail.example", "smtp://mail.example?tls=none"),
			wrong: []string{
				"hunter2", "http://u:hunter2@mail.example", "smtp://u:hunter2@", "smtp://u:hunter2@mail.example:port", "smtp:hunter2@h",
				"smtp://u:hunter2@mail.example:0", "smtp://u:hunter2%zz@mail.example", "smtp://u:hunter2@mail.example/path",
				"smtp://u:a@hunter2@mail.example", "smtp://u:1/hunter2@mail.example", "smtp://u:1?hunter2@mail.example", "smtp://u:1#hunter2@mail.example",
			},
			with: map[string]string{"SMTP_FROM": "no-reply@example.com"},
		},
		{
			name: "SMTP_FROM", get: func(s *Settings) any { return s.SMTPFrom }, unset: "",
			right: asIs("no-reply@example.com", "Acme <no-reply@example.com>"),
			wrong: []string{"no-reply", "a@example.com, b@example.com", "no-reply@example.com\r\nBcc: all@example.com"},
		},
		{
			name: "BOOTSTRAP_CUSTOMER", get: func(s *Settings) any { return s.Bootstrap.Customer }, unset: "",
			right: asIs("acme", longest), wrong: []string{longest + "語", "\xff"},
		},
		{
			name: "BOOTSTRAP_USERNAME", get: func(s *Settings) any { return s.Bootstrap.Username }, unset: "",
			right: asIs("admin", longest), wrong: []string{longest + "語", "\xff"},
			needed: true, with: map[string]string{"BOOTSTRAP_CUSTOMER": "acme", "BOOTSTRAP_PASSWORD": "secret"},
		},
		{
			name: "BOOTSTRAP_PASSWORD", get: func(s *Settings) any { return s.Bootstrap.Password.Reveal() }, unset: "",
			right: asIs("p", " hunter2 "), wrong: []string{"hunter2\xff"},
			needed: true, with: map[string]string{"BOOTSTRAP_CUSTOMER": "acme", "BOOTSTRAP_USERNAME": "admin"},
		},
		{
			name: "BOOTSTRAP_ACCESSKEY", get: func(s *Settings) any { return s.Bootstrap.AccessKey.Reveal() }, unset: "", with: customer,
			right: asIs(testKey, "vb_-_"+testKey[5:]),
			wrong: []string{"hunter2", "vb_hunter2", "vb_hunter2" + testKey, "xx_hunter2" + testKey[10:], "vb_hunter2 " + testKey[11:]},
		},
	}
}

const (
	testSecret = "the-jwt-secret-of-these-tests-0123456789"
	testKey    = "vb_TestTestTestTestTestTestTestTest"
)

// load reads the settings of an environment and a command line.
func load(env map[string]string, args ...string) (*Settings, error) {
	flags := flag.NewFlagSet("server", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	given := AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	return Load(func(name string) string { return env[name] }, given, nil)
}

// settingsByName is settingsTable, and fails the test where the cases above have lost sight of it.
func settingsByName(t *testing.T) map[string]Setting {
	t.Helper()
	byName, names, tested := map[string]Setting{}, []string{}, []string{}
	for _, s := range Table() {
		byName[s.Name] = s
		names = append(names, s.Name)
	}
	for _, c := range settingCases() {
		tested = append(tested, c.name)
	}
	slices.Sort(names)
	if slices.Sort(tested); !slices.Equal(names, tested) {
		t.Fatalf("the settings are\n%q, and those with a case\n%q", names, tested)
	}
	return byName
}

// Contract, section 6: Settings come from the environment (flags of the same name may override), with their defaults; what is set to nothing
// is not set.
func TestSettingIsItsFlagElseItsVariableElseItsDefault(t *testing.T) {
	t.Parallel()
	table := settingsByName(t)
	for _, c := range settingCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			check := func(from string, want any, value string, args ...string) {
				t.Helper()
				env := map[string]string{c.name: value}
				maps.Copy(env, c.with)
				loaded, err := load(env, args...)
				if err != nil {
					t.Fatalf("from %s, %q: %v", from, value, err)
				}
				if got := c.get(loaded); !reflect.DeepEqual(got, want) {
					t.Errorf("from %s, %q: %v, want %v", from, value, got, want)
				}
			}
			if !c.needed {
				check("nothing", c.unset, "")
			}
			flag := "--" + table[c.name].Flag() + "="
			for value, want := range c.right {
				check("the environment", want, value)
				if table[c.name].Secret {
					continue
				}
				check("the flag", want, "", flag+value)
				check("the flag over the environment", want, c.wrong[0], flag+value)
			}
			if !table[c.name].Secret && len(c.with) == 0 {
				check("an empty flag", c.unset, "", flag)
			}
		})
	}
}

// A wrong setting is an error that names it and says what it takes, and never repeats a secret.
func TestWrongSettingIsNamed(t *testing.T) {
	t.Parallel()
	table := settingsByName(t)
	for _, c := range settingCases() {
		s := table[c.name]
		line := regexp.MustCompile(`^` + c.name + `: .*: it takes ` + regexp.QuoteMeta(s.Takes) + `$`)
		for _, value := range c.wrong {
			env := map[string]string{"DATABASE_URL": "postgres://127.0.0.1:1/d", "JWT_SECRET": testSecret, "LISTEN_ADDR": "127.0.0.1:0"}
			maps.Copy(env, c.with)
			tries := map[string]error{}
			if !s.Secret {
				_, tries["the flag"] = load(env, "--"+s.Flag()+"="+value)
			}
			env[c.name] = value
			_, tries["the environment"] = load(env)
			for from, err := range tries {
				if _, is := errors.AsType[UsageError](err); !is || !line.MatchString(err.Error()) {
					t.Errorf("%s=%q from %s: %v", c.name, value, from, err)
				}
				if s.Secret && (err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(value, "hunter2")) {
					t.Errorf("%s=%q shows in %v", c.name, value, err)
				}
			}
		}
	}
}

// Contract, section 6: `BOOTSTRAP_CUSTOMER`, `BOOTSTRAP_USERNAME`, `BOOTSTRAP_PASSWORD`, `BOOTSTRAP_ACCESSKEY` (all optional ...): any that
// make sense together.
func TestBootstrapSettingsNeedOneAnother(t *testing.T) {
	t.Parallel()
	const (
		noCustomer = "BOOTSTRAP_CUSTOMER is missing: the other BOOTSTRAP settings need the name of their customer"
		noUsername = "BOOTSTRAP_USERNAME is missing: BOOTSTRAP_PASSWORD needs one"
		noPassword = "BOOTSTRAP_PASSWORD is missing: BOOTSTRAP_USERNAME needs one"
	)
	values := map[byte][2]string{
		'c': {"BOOTSTRAP_CUSTOMER", "acme"}, 'u': {"BOOTSTRAP_USERNAME", "admin"},
		'p': {"BOOTSTRAP_PASSWORD", "hunter2"}, 'k': {"BOOTSTRAP_ACCESSKEY", testKey},
	}
	for given, want := range map[string]string{
		"": "", "c": "", "ck": "", "cup": "", "cupk": "",
		"u": noCustomer, "p": noCustomer, "k": noCustomer, "up": noCustomer, "upk": noCustomer,
		"cu": noPassword, "cuk": noPassword, "cp": noUsername, "cpk": noUsername,
	} {
		env := map[string]string{}
		for _, letter := range []byte(given) {
			env[values[letter][0]] = values[letter][1]
		}
		if _, err := load(env); want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%q: %v, want %q", given, err, want)
		}
	}
}

var update = flag.Bool("update", false, "write the generated part of docs/configuration.md")

// docs/configuration.md has the table of settings.
func TestConfigurationDocumentIsTheTable(t *testing.T) {
	t.Parallel()
	const path, begin, end = "../../docs/configuration.md", "<!-- settings -->\n", "<!-- end of settings -->"
	var table strings.Builder
	table.WriteString("| setting | flag | default | takes |\n| --- | --- | --- | --- |\n")
	for _, s := range Table() {
		flagName, value := "`--"+s.Flag()+"`", ""
		if s.Secret {
			flagName = ""
		}
		if s.Default != "" {
			value = "`" + s.Default + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", s.Name, flagName, value, strings.ReplaceAll(s.Takes, "|", "\\|"))
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, began := strings.Cut(string(content), begin)
	found, after, ended := strings.Cut(rest, end)
	switch {
	case !began || !ended:
		t.Fatalf("%s has no place for the table", path)
	case found == table.String():
	case *update:
		if err := os.WriteFile(path, []byte(before+begin+table.String()+end+after), 0o600); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s is not up to date: go test ./internal/config -run Configuration -update", path)
	}
}
