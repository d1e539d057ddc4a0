package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"accesskeys/internal/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/authcache"
	"accesskeys/internal/mail"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

// settings are what the environment and the flags say, checked.
type settings struct {
	databaseURL        secret.Value
	listenAddr         string
	handedOver         bool // a service manager's socket takes listenAddr's place
	shutdownDelay      time.Duration
	tlsCertFile        string
	tlsKeyFile         string
	jwtSecret          secret.Value
	jwtSecretPrevious  secret.Value
	audience           string
	accessKeyMinExpire int64 // seconds
	cacheLease         time.Duration
	cacheMaxAge        time.Duration
	cacheBytes         uint64
	logLevel           slog.Level
	logFormat          string
	authLimit          web.Limit
	v1Limit            web.Limit
	trustedProxies     []netip.Prefix
	signup             bool
	signupLog          bool // a sign-up's code goes to the log where there is no smtpURL
	smtpURL            secret.Value
	smtpFrom           string
	bootstrap          bootstrapSettings
	warnings           []string // of values that are taken and hardly meant
}

type bootstrapSettings struct {
	customer  string
	username  string
	password  secret.Value
	accessKey auth.AccessToken // empty where none is asked for
	expire    int64            // of accessKey in seconds, 0 for the default
}

// setting is one line of the table below, from which parsing, flags and help are made.
type setting struct {
	name   string
	takes  string // completes "it takes ..."
	value  string // where it is not set; "" is: not set
	secret bool   // has no flag: a command line can be read by every user of the machine
	set    func(*settings, string) error
}

func (s setting) flagName() string { return strings.ReplaceAll(strings.ToLower(s.name), "_", "-") }

const (
	maxShutdownDelay = time.Minute
)

func settingsTable() []setting {
	return []setting{
		{name: "DATABASE_URL", takes: "a PostgreSQL URL such as postgres://user:password@host:5432/name", secret: true, set: setDatabaseURL},
		{name: "LISTEN_ADDR", takes: "host:port or :port", value: ":8080", set: setListenAddr},
		{name: "TLS_CERT_FILE", takes: "the file of a certificate with its chain, in PEM, to answer with HTTPS; it is read again when it changes", set: func(s *settings, v string) error { return setFile(&s.tlsCertFile, v) }},
		{name: "TLS_KEY_FILE", takes: "the file of the private key of TLS_CERT_FILE, in PEM", set: func(s *settings, v string) error { return setFile(&s.tlsKeyFile, v) }},
		{name: "SHUTDOWN_DELAY", takes: "for how long connections are still accepted after a SIGTERM, while /readyz sends balancers elsewhere: 0 to 60s", value: "1s", set: setShutdownDelay},
		{name: "JWT_SECRET", takes: "a secret of at least 32 bytes", secret: true, set: setJWTSecret},
		{name: "JWT_SECRET_PREVIOUS", takes: "a secret of at least 32 bytes, the one before JWT_SECRET; it only verifies", secret: true, set: setJWTSecretPrevious},
		{name: "AUDIENCE", takes: "the name of this service that service accounts' tokens may give as aud, at most 255 characters", set: setAudience},
		{name: "ACCESSKEY_MIN_EXPIRE", takes: "a whole number of seconds from 1 to 3153600000", value: "1", set: setMinExpire},
		{name: "CACHE_LEASE", takes: "for how long credentials may be checked from memory after the last word from the database: 100ms to 20s, or 0 to ask it each time", value: "2s", set: setCacheLease},
		{name: "CACHE_MAX_AGE", takes: "how old a credential in memory may become before it is read from the database again: 1s to 24h", value: "10m", set: setCacheMaxAge},
		{name: "CACHE_SIZE", takes: "the MiB of memory for credentials, from 1", value: "256", set: setCacheSize},
		{name: "LOG_LEVEL", takes: "debug, info, warn or error", value: "info", set: setLogLevel},
		{name: "LOG_FORMAT", takes: "json or text", value: "json", set: setLogFormat},
		{name: "RATE_LIMIT_AUTH_RPS", takes: "requests a second per client address on /auth, 0 for no limit", value: "10", set: func(s *settings, v string) error { return setRPS(&s.authLimit, v) }},
		{name: "RATE_LIMIT_AUTH_BURST", takes: "a whole number from 1", value: "20", set: func(s *settings, v string) error { return setBurst(&s.authLimit, v) }},
		{name: "RATE_LIMIT_V1_RPS", takes: "requests a second per client address on /v1.0, 0 for no limit", value: "0", set: func(s *settings, v string) error { return setRPS(&s.v1Limit, v) }},
		{name: "RATE_LIMIT_V1_BURST", takes: "a whole number from 1", value: "100", set: func(s *settings, v string) error { return setBurst(&s.v1Limit, v) }},
		{name: "TRUSTED_PROXIES", takes: "CIDRs such as 10.0.0.0/8,::1/128, whose X-Forwarded-For is believed", set: setTrustedProxies},
		{name: "SIGNUP", takes: "true to let people make customers of their own by POST /auth/signup, else false", value: "false", set: setSignup},
		{name: "SMTP_URL", takes: "the mail server of SIGNUP: smtp:// or smtps://user:password@host:port, with ?tls=none to do without TLS and a password", secret: true, set: setSMTPURL},
		{name: "SMTP_FROM", takes: "the sender of SIGNUP's mails, such as no-reply@example.com", set: setSMTPFrom},
		{name: "BOOTSTRAP_CUSTOMER", takes: "the name of a customer that should exist, at most 255 characters", set: setBootstrapCustomer},
		{name: "BOOTSTRAP_USERNAME", takes: "the username of an admin of BOOTSTRAP_CUSTOMER, at most 255 characters", set: setBootstrapUsername},
		{name: "BOOTSTRAP_PASSWORD", takes: "the password of BOOTSTRAP_USERNAME, in UTF-8", secret: true, set: setBootstrapPassword},
		{name: "BOOTSTRAP_ACCESSKEY", takes: "a key of BOOTSTRAP_CUSTOMER: vb_ and 32 characters out of 0-9 A-Z a-z - _", secret: true, set: setBootstrapAccessKey},
	}
}

// settingFlags are the settings given as flags.
type settingFlags struct{ values map[string]string }

func addSettingFlags(flags *flag.FlagSet) *settingFlags {
	given := &settingFlags{values: map[string]string{}}
	for _, s := range settingsTable() {
		if s.secret {
			continue
		}
		flags.Func(s.flagName(), s.takes+" ("+s.name+")", func(v string) error {
			given.values[s.name] = v
			return nil
		})
	}
	return given
}

// loadSettings reads every setting, or where used is not nil those, from its flag, else from the environment, else its default. An error
// names the setting and says what it takes, and never repeats a value.
func loadSettings(getenv func(string) string, given *settingFlags, used []string, needed ...string) (*settings, error) {
	loaded := &settings{}
	for _, s := range settingsTable() {
		if used != nil && !slices.Contains(used, s.name) {
			continue
		}
		value, fromFlag := given.values[s.name]
		if !fromFlag {
			value = getenv(s.name)
		}
		if value == "" {
			value = s.value
		}
		if value == "" {
			if slices.Contains(needed, s.name) {
				return nil, usagef("%s is missing: it takes %s", s.name, s.takes)
			}
			continue
		}
		if err := s.set(loaded, value); err != nil {
			return nil, usagef("%s: %w: it takes %s", s.name, err, s.takes)
		}
	}
	if used != nil {
		return loaded, nil
	}
	loaded.checkTogether()
	if err := errors.Join(loaded.checkHandedOver(getenv), loaded.checkTLS(), loaded.checkMail()); err != nil {
		return nil, err
	}
	return loaded, loaded.bootstrap.check()
}

// checkTogether warns of values that make no sense beside each other, or on this machine.
func (s *settings) checkTogether() {
	if !s.jwtSecret.Empty() && s.jwtSecret.Reveal() == s.jwtSecretPrevious.Reveal() {
		s.warn("JWT_SECRET_PREVIOUS is the same as JWT_SECRET: logins by the secret before that are refused")
	}
	// 32 random hexadecimal digits have fewer different ones about once in a million times.
	if v := s.jwtSecret.Reveal(); v != "" && distinct(v) < 8 {
		s.warn("JWT_SECRET has %d different characters only: take a random one, such as of `openssl rand -hex 32`", distinct(v))
	}
	if memory := memoryLimit(); memory > 0 && s.cacheBytes > memory/2 {
		s.warn("CACHE_SIZE is %d MiB, of the %d MiB that this machine or its cgroup has", s.cacheBytes>>20, memory>>20)
	}
	if s.bootstrap.accessKey.Reveal() == demoAccessKey {
		s.warn("BOOTSTRAP_ACCESSKEY is the published demo key, which opens this database to everybody")
	}
}

func (s *settings) warn(format string, args ...any) {
	s.warnings = append(s.warnings, fmt.Sprintf(format, args...))
}

// check looks at settings that need one another.
func (b bootstrapSettings) check() error {
	switch {
	case b.customer == "" && (b.username != "" || !b.password.Empty() || !b.accessKey.Empty()):
		return usagef("BOOTSTRAP_CUSTOMER is missing: the other BOOTSTRAP settings need the name of their customer")
	case b.username != "" && b.password.Empty():
		return usagef("BOOTSTRAP_PASSWORD is missing: BOOTSTRAP_USERNAME needs one")
	case b.username == "" && !b.password.Empty():
		return usagef("BOOTSTRAP_USERNAME is missing: BOOTSTRAP_PASSWORD needs one")
	}
	return nil
}

// checkTLS looks at the settings about TLS, which need one another.
func (s *settings) checkTLS() error {
	switch {
	case s.tlsCertFile == "" && s.tlsKeyFile != "":
		return usagef("TLS_CERT_FILE is missing: TLS_KEY_FILE needs the certificate")
	case s.tlsCertFile != "" && s.tlsKeyFile == "":
		return usagef("TLS_KEY_FILE is missing: TLS_CERT_FILE needs its private key")
	}
	return nil
}

// checkMail looks at the settings about mail, which need one another.
func (s *settings) checkMail() error {
	if s.smtpURL.Empty() {
		return nil // which SIGNUP needs, but for dev
	}
	if _, err := mail.NewSMTP(s.smtpURL, s.smtpFrom); err != nil {
		return usagef("SMTP_FROM: %w: it takes the address that mails come from", err) // the URL was checked before
	}
	return nil
}

// mailer is what sends the codes of sign-ups, nil where there are none.
func (s *settings) mailer(log *slog.Logger) (api.Mailer, error) {
	switch {
	case !s.signup:
		return nil, nil //nolint:nilnil // no mailer is a value of its own here: without one api.New adds no routes for sign-ups
	case !s.smtpURL.Empty():
		return mail.NewSMTP(s.smtpURL, s.smtpFrom)
	case s.signupLog:
		return mail.NewLog(log), nil
	default:
		return nil, usagef("SMTP_URL is missing: SIGNUP=true needs the mail server that sends the codes")
	}
}

func describeSettings(w io.Writer) {
	for _, s := range settingsTable() {
		name := s.name
		if !s.secret {
			name += ", --" + s.flagName()
		}
		fmt.Fprintf(w, "  %s\n        %s", name, s.takes)
		if s.value != "" {
			fmt.Fprintf(w, "; default %s", s.value)
		}
		fmt.Fprintln(w)
	}
}

var errNotValid = errors.New("the value is not valid")

func setDatabaseURL(s *settings, v string) error {
	if err := checkEncoded(v); err != nil {
		return err
	}
	s.databaseURL = secret.New(v)
	if postgres.CheckURL(s.databaseURL) != nil {
		return errNotValid // the setting says itself what it takes
	}
	return nil
}

// checkEncoded looks for signs of a user or a password in a URL that are not encoded (RFC 3986, section 3.2.1). Part of such a one is
// taken for the host, looked up, and shown in errors.
func checkEncoded(v string) error {
	_, rest, isURL := strings.Cut(v, "://")
	if !isURL {
		return nil
	}
	authority := rest
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		authority = rest[:end]
	}
	_, unescaped := url.PathUnescape(rest)
	if strings.Count(rest, "@") != strings.Count(authority, "@") || strings.Count(authority, "@") > 1 || strings.Contains(rest, "#") ||
		unescaped != nil || strings.ContainsAny(rest, " \t\r\n\\") {
		return errors.New("a character in it must be encoded, such as @ as %40, / as %2F, # as %23 and % as %25")
	}
	return nil
}

func setListenAddr(s *settings, v string) error {
	_, port, err := net.SplitHostPort(v)
	if err != nil {
		return errNotValid
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errNotValid
	}
	s.listenAddr = v
	return nil
}

func setJWTSecret(s *settings, v string) error { return setSecret(&s.jwtSecret, v) }

func setJWTSecretPrevious(s *settings, v string) error { return setSecret(&s.jwtSecretPrevious, v) }

func setSecret(to *secret.Value, v string) error {
	if len(v) < auth.MinSecretLength {
		return errors.New("the value is too short")
	}
	if distinct(v) < 3 {
		return errors.New("the value is one or two characters again and again")
	}
	*to = secret.New(v)
	return nil
}

// distinct is how many different bytes a text has.
func distinct(v string) int {
	bytes := []byte(v)
	slices.Sort(bytes)
	return len(slices.Compact(bytes))
}

func setAudience(s *settings, v string) error {
	s.audience = v
	return checkText(v, store.MaxName)
}

func setMinExpire(s *settings, v string) error {
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 1 || n > store.MaxExpire {
		return errNotValid
	}
	s.accessKeyMinExpire = n
	return nil
}

func setFile(to *string, v string) error {
	file, err := os.Open(v)
	if err != nil {
		return errors.New("the file can't be read")
	}
	*to = v
	return file.Close()
}

func setShutdownDelay(s *settings, v string) error {
	delay, err := parseDuration(v)
	if err != nil || delay < 0 || delay > maxShutdownDelay {
		return errNotValid
	}
	s.shutdownDelay = delay
	return nil
}

func setCacheLease(s *settings, v string) error {
	lease, err := parseDuration(v)
	if err != nil || lease != 0 && (lease < authcache.MinLease || lease > authcache.MaxLease) {
		return errNotValid
	}
	s.cacheLease = lease
	return nil
}

func setCacheMaxAge(s *settings, v string) error {
	age, err := parseDuration(v)
	if err != nil || age < authcache.MinMaxAge || age > authcache.MaxMaxAge {
		return errNotValid
	}
	s.cacheMaxAge = age
	return nil
}

// parseDuration takes a duration with its unit, or whole seconds.
func parseDuration(v string) (time.Duration, error) {
	if seconds, err := strconv.ParseUint(v, 10, 16); err == nil {
		return time.Duration(seconds) * time.Second, nil
	}
	return time.ParseDuration(v)
}

func setCacheSize(s *settings, v string) error {
	mib, err := strconv.ParseUint(v, 10, 24)
	if err != nil || mib < 1 {
		return errNotValid
	}
	s.cacheBytes = mib << 20
	return nil
}

func setLogLevel(s *settings, v string) error {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, strings.ToLower(v)) {
		return errNotValid
	}
	return s.logLevel.UnmarshalText([]byte(v))
}

func setLogFormat(s *settings, v string) error {
	if v != "json" && v != "text" {
		return errNotValid
	}
	s.logFormat = v
	return nil
}

func setRPS(l *web.Limit, v string) error {
	rps, err := strconv.ParseFloat(v, 64)
	if err != nil || !(rps >= 0 && rps <= 1e9) { // the negation also catches NaN
		return errNotValid
	}
	l.RPS = rps
	return nil
}

func setBurst(l *web.Limit, v string) error {
	burst, err := strconv.ParseInt(v, 10, 32)
	if err != nil || burst < 1 {
		return errNotValid
	}
	l.Burst = int(burst)
	return nil
}

func setTrustedProxies(s *settings, v string) error {
	for part := range strings.SplitSeq(v, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return errNotValid
		}
		// The widest private networks are 10.0.0.0/8 and fc00::/7.
		bits, least := prefix.Bits(), 7
		if prefix.Addr().Is4() || prefix.Addr().Is4In6() && bits >= 96 {
			bits, least = bits-(prefix.Addr().BitLen()-32), 8
		}
		if bits < least {
			return fmt.Errorf("%s is too wide: each peer in it can claim any address", prefix)
		}
		s.trustedProxies = append(s.trustedProxies, prefix)
	}
	return nil
}

func setSignup(s *settings, v string) error {
	if v != "true" && v != "false" {
		return errNotValid
	}
	s.signup = v == "true"
	return nil
}

func setSMTPURL(s *settings, v string) error {
	address, _, _ := strings.Cut(v, "?") // an option is the sender
	if err := checkEncoded(address); err != nil {
		return err
	}
	s.smtpURL = secret.New(v)
	if _, err := mail.NewSMTP(s.smtpURL, ""); err != nil && !errors.Is(err, mail.ErrFrom) { // SMTP_FROM may have that
		return errNotValid
	}
	return nil
}

func setSMTPFrom(s *settings, v string) error {
	s.smtpFrom = v
	if !mail.IsSender(v) {
		return errNotValid
	}
	return nil
}

func setBootstrapCustomer(s *settings, v string) error {
	s.bootstrap.customer = v
	return checkText(v, store.MaxName)
}

func setBootstrapUsername(s *settings, v string) error {
	s.bootstrap.username = v
	return checkText(v, store.MaxName)
}

func setBootstrapPassword(s *settings, v string) error {
	s.bootstrap.password = secret.New(v)
	if !utf8.ValidString(v) { // no login could present it
		return errNotValid
	}
	return nil
}

func setBootstrapAccessKey(s *settings, v string) error {
	token, ok := auth.ParseAccessToken(v)
	if !ok {
		return errNotValid
	}
	s.bootstrap.accessKey = token
	return nil
}
