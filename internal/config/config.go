// Package config reads the settings: one table, from which parsing, flags, help and docs/configuration.md are made.
package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/mail"
	"accesskeys/internal/secret"
	"accesskeys/internal/web"
)

// Settings are what the environment and the flags say, checked.
type Settings struct {
	DatabaseURL        secret.Value
	ListenAddr         string
	Inherited          bool // a service manager's socket takes ListenAddr's place
	ShutdownDelay      time.Duration
	TLSCertFile        string
	TLSKeyFile         string
	JWTSecret          secret.Value
	JWTSecretPrevious  secret.Value
	Audience           string
	AccessKeyMinExpire int64 // seconds
	CacheLease         time.Duration
	CacheMaxAge        time.Duration
	CacheBytes         uint64
	LogLevel           slog.Level
	LogFormat          string
	AuthLimit          web.Limit
	V1Limit            web.Limit
	TrustedProxies     []netip.Prefix
	Signup             bool
	SignupLog          bool // a sign-up's code goes to the log where there is no SMTPURL
	SMTPURL            secret.Value
	SMTPFrom           string
	Bootstrap          Bootstrap

	warnings []string // of values that are taken and hardly meant
}

// Bootstrap is what the BOOTSTRAP settings name.
type Bootstrap struct {
	Customer  string
	Username  string
	Password  secret.Value
	AccessKey auth.AccessToken // empty where none is asked for
	Expire    int64            // of AccessKey in seconds, 0 for the default
}

// Setting is one line of the table below, from which parsing, flags and help are made.
type Setting struct {
	Name    string
	Takes   string // completes "it takes ..."
	Default string // where it is not set; "" is: not set
	Secret  bool   // has no flag: a command line can be read by every user of the machine
	set     func(*Settings, string) error
}

// Flag is the name of the setting's flag, without dashes.
func (s Setting) Flag() string { return strings.ReplaceAll(strings.ToLower(s.Name), "_", "-") }

const maxShutdownDelay = time.Minute

// DemoAccessKey is the access key of `server dev`. It is published.
const DemoAccessKey = "vb_DemoDemoDemoDemoDemoDemoDemoDemo"

// UsageError is a setting, or a command line, that is not as it should be.
type UsageError struct{ error }

// Unwrap returns the cause.
func (e UsageError) Unwrap() error { return e.error }

// Usagef makes a UsageError, as fmt.Errorf does.
func Usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// Table has every setting.
func Table() []Setting {
	return []Setting{
		{Name: "DATABASE_URL", Takes: "a PostgreSQL URL such as postgres://user:password@host:5432/name", Secret: true, set: setDatabaseURL},
		{Name: "LISTEN_ADDR", Takes: "host:port or :port", Default: ":8080", set: setListenAddr},
		{Name: "TLS_CERT_FILE", Takes: "the file of a certificate with its chain, in PEM, to answer with HTTPS; it is read again when it changes", set: func(s *Settings, v string) error { return setFile(&s.TLSCertFile, v) }},
		{Name: "TLS_KEY_FILE", Takes: "the file of the private key of TLS_CERT_FILE, in PEM", set: func(s *Settings, v string) error { return setFile(&s.TLSKeyFile, v) }},
		{Name: "SHUTDOWN_DELAY", Takes: "for how long connections are still accepted after a SIGTERM, while /readyz sends balancers elsewhere: 0 to 60s", Default: "1s", set: setShutdownDelay},
		{Name: "JWT_SECRET", Takes: "a secret of at least 32 bytes", Secret: true, set: setJWTSecret},
		{Name: "JWT_SECRET_PREVIOUS", Takes: "a secret of at least 32 bytes, the one before JWT_SECRET; it only verifies", Secret: true, set: setJWTSecretPrevious},
		{Name: "AUDIENCE", Takes: "the name of this service that service accounts' tokens may give as aud, at most 255 characters", set: setAudience},
		{Name: "ACCESSKEY_MIN_EXPIRE", Takes: "a whole number of seconds from 1 to 3153600000", Default: "1", set: setMinExpire},
		{Name: "CACHE_LEASE", Takes: "for how long credentials may be checked from memory after the last word from the database: 100ms to 20s, or 0 to ask it each time", Default: "2s", set: setCacheLease},
		{Name: "CACHE_MAX_AGE", Takes: "how old a credential in memory may become before it is read from the database again: 1s to 24h", Default: "10m", set: setCacheMaxAge},
		{Name: "CACHE_SIZE", Takes: "the MiB of memory for credentials, from 1", Default: "256", set: setCacheSize},
		{Name: "LOG_LEVEL", Takes: "debug, info, warn or error", Default: "info", set: setLogLevel},
		{Name: "LOG_FORMAT", Takes: "json or text", Default: "json", set: setLogFormat},
		{Name: "RATE_LIMIT_AUTH_RPS", Takes: "requests a second per client address on /auth, 0 for no limit", Default: "10", set: func(s *Settings, v string) error { return setRPS(&s.AuthLimit, v) }},
		{Name: "RATE_LIMIT_AUTH_BURST", Takes: "a whole number from 1", Default: "20", set: func(s *Settings, v string) error { return setBurst(&s.AuthLimit, v) }},
		{Name: "RATE_LIMIT_V1_RPS", Takes: "requests a second per client address on /v1.0, 0 for no limit", Default: "0", set: func(s *Settings, v string) error { return setRPS(&s.V1Limit, v) }},
		{Name: "RATE_LIMIT_V1_BURST", Takes: "a whole number from 1", Default: "100", set: func(s *Settings, v string) error { return setBurst(&s.V1Limit, v) }},
		{Name: "TRUSTED_PROXIES", Takes: "CIDRs such as 10.0.0.0/8,::1/128, whose X-Forwarded-For is believed", set: setTrustedProxies},
		{Name: "SIGNUP", Takes: "true to let people make customers of their own by POST /auth/signup, else false", Default: "false", set: setSignup},
		{Name: "SMTP_URL", Takes: "the mail server of SIGNUP: smtp:// or smtps://user:password@host:port, with ?tls=none to do without TLS and a password", Secret: true, set: setSMTPURL},
		{Name: "SMTP_FROM", Takes: "the sender of SIGNUP's mails, such as no-reply@example.com", set: setSMTPFrom},
		{Name: "BOOTSTRAP_CUSTOMER", Takes: "the name of a customer that should exist, at most 255 characters", set: setBootstrapCustomer},
		{Name: "BOOTSTRAP_USERNAME", Takes: "the username of an admin of BOOTSTRAP_CUSTOMER, at most 255 characters", set: setBootstrapUsername},
		{Name: "BOOTSTRAP_PASSWORD", Takes: "the password of BOOTSTRAP_USERNAME, in UTF-8", Secret: true, set: setBootstrapPassword},
		{Name: "BOOTSTRAP_ACCESSKEY", Takes: "a key of BOOTSTRAP_CUSTOMER: vb_ and 32 characters out of 0-9 A-Z a-z - _", Secret: true, set: setBootstrapAccessKey},
	}
}

// Flags are the settings that were given as flags.
type Flags struct{ values map[string]string }

// AddFlags adds a flag for each setting that may have one.
func AddFlags(flags *flag.FlagSet) *Flags {
	given := &Flags{values: map[string]string{}}
	for _, s := range Table() {
		if s.Secret {
			continue
		}
		flags.Func(s.Flag(), s.Takes+" ("+s.Name+")", func(v string) error {
			given.values[s.Name] = v
			return nil
		})
	}
	return given
}

// Load reads every setting, or where used is not nil those, from its flag, else from the environment, else its default. An error
// names the setting and says what it takes, and never repeats a value; it is a UsageError. needed are the names of those that must be set.
func Load(getenv func(string) string, given *Flags, used []string, needed ...string) (*Settings, error) {
	loaded := &Settings{}
	for _, s := range Table() {
		if used != nil && !slices.Contains(used, s.Name) {
			continue
		}
		value, fromFlag := given.values[s.Name]
		if !fromFlag {
			value = getenv(s.Name)
		}
		if value == "" {
			value = s.Default
		}
		if value == "" {
			if slices.Contains(needed, s.Name) {
				return nil, Usagef("%s is missing: it takes %s", s.Name, s.Takes)
			}
			continue
		}
		if err := s.set(loaded, value); err != nil {
			return nil, Usagef("%s: %w: it takes %s", s.Name, err, s.Takes)
		}
	}
	if used != nil {
		return loaded, nil
	}
	loaded.checkTogether()
	if err := errors.Join(loaded.checkInherited(getenv), loaded.checkTLS(), loaded.checkMail()); err != nil {
		return nil, err
	}
	return loaded, loaded.Bootstrap.check()
}

// checkTogether warns of values that make no sense beside each other, or on this machine.
func (s *Settings) checkTogether() {
	if !s.JWTSecret.Empty() && s.JWTSecret.Reveal() == s.JWTSecretPrevious.Reveal() {
		s.warn("JWT_SECRET_PREVIOUS is the same as JWT_SECRET: logins by the secret before that are refused")
	}
	// 32 random hexadecimal digits have fewer different ones about once in a million times.
	if v := s.JWTSecret.Reveal(); v != "" && distinct(v) < 8 {
		s.warn("JWT_SECRET has %d different characters only: take a random one, such as of `openssl rand -hex 32`", distinct(v))
	}
	if memory := memoryLimit(); memory > 0 && s.CacheBytes > memory/2 {
		s.warn("CACHE_SIZE is %d MiB, of the %d MiB that this machine or its cgroup has", s.CacheBytes>>20, memory>>20)
	}
	if s.Bootstrap.AccessKey.Reveal() == DemoAccessKey {
		s.warn("BOOTSTRAP_ACCESSKEY is the published demo key, which opens this database to everybody")
	}
}

func (s *Settings) warn(format string, args ...any) {
	s.warnings = append(s.warnings, fmt.Sprintf(format, args...))
}

// check looks at settings that need one another.
func (b Bootstrap) check() error {
	switch {
	case b.Customer == "" && (b.Username != "" || !b.Password.Empty() || !b.AccessKey.Empty()):
		return Usagef("BOOTSTRAP_CUSTOMER is missing: the other BOOTSTRAP settings need the name of their customer")
	case b.Username != "" && b.Password.Empty():
		return Usagef("BOOTSTRAP_PASSWORD is missing: BOOTSTRAP_USERNAME needs one")
	case b.Username == "" && !b.Password.Empty():
		return Usagef("BOOTSTRAP_USERNAME is missing: BOOTSTRAP_PASSWORD needs one")
	}
	return nil
}

// checkInherited looks for a socket that a service manager holds for us, as systemd's socket units do: LISTEN_PID says
// whose it is, LISTEN_FDS how many there are. It takes LISTEN_ADDR's place. The manager keeps it open while we restart, so that
// connections wait in its queue meanwhile and none is refused.
func (s *Settings) checkInherited(getenv func(string) string) error {
	if getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil // none, or another process's
	}
	if sockets := getenv("LISTEN_FDS"); sockets != "1" {
		return Usagef("LISTEN_FDS: the service manager hands %q sockets over, this program takes one", sockets)
	}
	s.Inherited = true
	return nil
}

// checkTLS looks at the settings about TLS, which need one another.
func (s *Settings) checkTLS() error {
	switch {
	case s.TLSCertFile == "" && s.TLSKeyFile != "":
		return Usagef("TLS_CERT_FILE is missing: TLS_KEY_FILE needs the certificate")
	case s.TLSCertFile != "" && s.TLSKeyFile == "":
		return Usagef("TLS_KEY_FILE is missing: TLS_CERT_FILE needs its private key")
	}
	return nil
}

// checkMail looks at the settings about mail, which need one another.
func (s *Settings) checkMail() error {
	if s.SMTPURL.Empty() {
		return nil // which SIGNUP needs, but for dev
	}
	if _, err := mail.NewSMTP(s.SMTPURL, s.SMTPFrom); err != nil {
		return Usagef("SMTP_FROM: %w: it takes the address that mails come from", err) // the URL was checked before
	}
	return nil
}

// Describe writes a line or two about each setting.
func Describe(w io.Writer) {
	for _, s := range Table() {
		name := s.Name
		if !s.Secret {
			name += ", --" + s.Flag()
		}
		fmt.Fprintf(w, "  %s\n        %s", name, s.Takes)
		if s.Default != "" {
			fmt.Fprintf(w, "; default %s", s.Default)
		}
		fmt.Fprintln(w)
	}
}
