package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"accesskeys/internal/auth"
	"accesskeys/internal/authcache"
	"accesskeys/internal/mail"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

var errNotValid = errors.New("the value is not valid")

func setDatabaseURL(s *Settings, v string) error {
	if err := checkEncoded(v); err != nil {
		return err
	}
	s.DatabaseURL = secret.New(v)
	if postgres.CheckURL(s.DatabaseURL) != nil {
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

func setListenAddr(s *Settings, v string) error {
	_, port, err := net.SplitHostPort(v)
	if err != nil {
		return errNotValid
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errNotValid
	}
	s.ListenAddr = v
	return nil
}

func setJWTSecret(s *Settings, v string) error { return setSecret(&s.JWTSecret, v) }

func setJWTSecretPrevious(s *Settings, v string) error { return setSecret(&s.JWTSecretPrevious, v) }

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

func setAudience(s *Settings, v string) error {
	s.Audience = v
	return CheckText(v, store.MaxName)
}

func setMinExpire(s *Settings, v string) error {
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 1 || n > store.MaxExpire {
		return errNotValid
	}
	s.AccessKeyMinExpire = n
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

func setShutdownDelay(s *Settings, v string) error {
	delay, err := parseDuration(v)
	if err != nil || delay < 0 || delay > maxShutdownDelay {
		return errNotValid
	}
	s.ShutdownDelay = delay
	return nil
}

func setCacheLease(s *Settings, v string) error {
	lease, err := parseDuration(v)
	if err != nil || lease != 0 && (lease < authcache.MinLease || lease > authcache.MaxLease) {
		return errNotValid
	}
	s.CacheLease = lease
	return nil
}

func setCacheMaxAge(s *Settings, v string) error {
	age, err := parseDuration(v)
	if err != nil || age < authcache.MinMaxAge || age > authcache.MaxMaxAge {
		return errNotValid
	}
	s.CacheMaxAge = age
	return nil
}

// parseDuration takes a duration with its unit, or whole seconds.
func parseDuration(v string) (time.Duration, error) {
	if seconds, err := strconv.ParseUint(v, 10, 16); err == nil {
		return time.Duration(seconds) * time.Second, nil
	}
	return time.ParseDuration(v)
}

func setCacheSize(s *Settings, v string) error {
	mib, err := strconv.ParseUint(v, 10, 24)
	if err != nil || mib < 1 {
		return errNotValid
	}
	s.CacheBytes = mib << 20
	return nil
}

func setLogLevel(s *Settings, v string) error {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, strings.ToLower(v)) {
		return errNotValid
	}
	return s.LogLevel.UnmarshalText([]byte(v))
}

func setLogFormat(s *Settings, v string) error {
	if v != "json" && v != "text" {
		return errNotValid
	}
	s.LogFormat = v
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

func setTrustedProxies(s *Settings, v string) error {
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
		s.TrustedProxies = append(s.TrustedProxies, prefix)
	}
	return nil
}

func setSignup(s *Settings, v string) error {
	if v != "true" && v != "false" {
		return errNotValid
	}
	s.Signup = v == "true"
	return nil
}

func setSMTPURL(s *Settings, v string) error {
	address, _, _ := strings.Cut(v, "?") // an option is the sender
	if err := checkEncoded(address); err != nil {
		return err
	}
	s.SMTPURL = secret.New(v)
	if _, err := mail.NewSMTP(s.SMTPURL, ""); err != nil && !errors.Is(err, mail.ErrFrom) { // SMTP_FROM may have that
		return errNotValid
	}
	return nil
}

func setSMTPFrom(s *Settings, v string) error {
	s.SMTPFrom = v
	if !mail.IsSender(v) {
		return errNotValid
	}
	return nil
}

func setBootstrapCustomer(s *Settings, v string) error {
	s.Bootstrap.Customer = v
	return CheckText(v, store.MaxName)
}

func setBootstrapUsername(s *Settings, v string) error {
	s.Bootstrap.Username = v
	return CheckText(v, store.MaxName)
}

func setBootstrapPassword(s *Settings, v string) error {
	s.Bootstrap.Password = secret.New(v)
	if !utf8.ValidString(v) { // no login could present it
		return errNotValid
	}
	return nil
}

func setBootstrapAccessKey(s *Settings, v string) error {
	token, ok := auth.ParseAccessToken(v)
	if !ok {
		return errNotValid
	}
	s.Bootstrap.AccessKey = token
	return nil
}

// CheckText returns an error where v is no text, or longer than so many characters.
func CheckText(v string, most int) error {
	if !utf8.ValidString(v) || strings.ContainsRune(v, 0) || utf8.RuneCountInString(v) > most {
		return fmt.Errorf("it takes at most %d characters of text", most)
	}
	return nil
}
