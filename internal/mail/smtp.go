package mail

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	stdmail "net/mail"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"

	"accesskeys/internal/secret"
)

const (
	// sendTimeout bounds one mail, from connecting to the server's word that it has it.
	sendTimeout = 3 * time.Second
	// sendersAtOnce bounds the connections to the mail server.
	sendersAtOnce = 8
	// The ports of submission: with STARTTLS, and with TLS from the first byte (RFC 6409, RFC 8314).
	portStartTLS = 587
	portTLS      = 465
)

// SMTP sends mail through one server. It is safe for concurrent use.
type SMTP struct {
	host     string
	port     int
	implicit bool // TLS from the first byte
	policy   gomail.TLSPolicy
	user     string
	password secret.Value
	from     *stdmail.Address
	roots    *x509.CertPool // nil: the system's
	slots    chan struct{}
}

var (
	// ErrURL means that an address is not one of a mail server.
	ErrURL = errors.New("it is not an smtp:// or smtps:// address")
	// ErrFrom means that there is no sender, or one that is no address.
	ErrFrom = errors.New("the sender is missing or is not an address")
)

// NewSMTP makes an SMTP for the server at smtp://user:password@host:port, or smtps:// for TLS from the first byte. With
// smtp://, TLS begins by STARTTLS, and nothing is sent without it, unless the server is on this machine or the address
// ends in ?tls=none, which sends no password. The sender is from, else the address's ?from=. It returns ErrURL and
// ErrFrom, which don't repeat what they are about. It does not connect.
func NewSMTP(address secret.Value, from string) (*SMTP, error) {
	u, err := url.Parse(address.Reveal())
	if err != nil || u.Opaque != "" || strings.Trim(u.Path, "/") != "" || u.Fragment != "" || u.Hostname() == "" {
		return nil, ErrURL // not err, which quotes the address
	}
	s := &SMTP{host: u.Hostname(), port: portStartTLS, policy: gomail.TLSMandatory, slots: make(chan struct{}, sendersAtOnce)}
	switch u.Scheme {
	case "smtp":
	case "smtps":
		s.implicit, s.port = true, portTLS
	default:
		return nil, ErrURL
	}
	if u.Port() != "" {
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil || port == 0 {
			return nil, ErrURL
		}
		s.port = int(port)
	}
	password, _ := u.User.Password()
	s.user, s.password = u.User.Username(), secret.New(password)
	if err := s.readOptions(u, &from); err != nil {
		return nil, err
	}
	if !IsSender(from) {
		return nil, ErrFrom
	}
	s.from, err = stdmail.ParseAddress(from)
	return s, err
}

// IsSender reports whether s can be the sender of mails: an address, or "A name <address>".
func IsSender(s string) bool {
	from, err := stdmail.ParseAddress(s)
	return err == nil && IsAddress(from.Address) && !strings.ContainsAny(from.Name, "\r\n\x00")
}

// readOptions reads the part of the address after the question mark.
func (s *SMTP) readOptions(u *url.URL, from *string) error {
	local := slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, s.host)
	if local {
		s.policy = gomail.TLSOpportunistic
	}
	options, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return ErrURL
	}
	for name, values := range options {
		switch {
		case len(values) != 1:
			return ErrURL
		case name == "from":
			if *from == "" {
				*from = values[0]
			}
		case name == "tls" && values[0] == "none" && !s.implicit && (s.user == "" || local):
			s.policy = gomail.NoTLS
		default:
			return ErrURL
		}
	}
	return nil
}

// SendCode sends the code of a sign-up to the address that signs up.
func (s *SMTP) SendCode(ctx context.Context, to string, code secret.Value) error {
	return s.send(ctx, to, codeMessage(code.Reveal()))
}

// SendAccountExists tells the owner of an address that has a customer that somebody signs up with it.
func (s *SMTP) SendAccountExists(ctx context.Context, to string) error {
	return s.send(ctx, to, accountExistsMessage())
}

// send returns ErrRefused and ErrUnavailable; both tell neither the recipient nor what the server said, only its codes.
func (s *SMTP) send(ctx context.Context, to string, l message) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return fmt.Errorf("%w: too many mails at once", ErrUnavailable)
	}
	msg := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	msg.FromMailAddress(s.from)
	if !IsAddress(to) || msg.To(to) != nil {
		return ErrRefused
	}
	msg.Subject(l.subject)
	msg.SetDate()
	_, domain, _ := strings.Cut(s.from.Address, "@")
	msg.SetMessageIDWithValue(rand.Text() + "@" + domain) // the default names this machine
	msg.SetGenHeader("Auto-Submitted", "auto-generated")  // RFC 3834: nobody answers to it by machine
	msg.SetBodyString(gomail.TypeTextPlain, l.text)

	client, err := s.client(ctx)
	if err == nil {
		err = client.DialAndSendWithContext(ctx, msg)
	}
	if err == nil || msg.IsDelivered() { // what fails after that is only the goodbye
		return nil
	}
	return failed(err)
}

// client makes a client whose connection ends with ctx: go-mail heeds it only till it is connected, gives each step a time
// of its own, and leaves the connection open where it fails early.
func (s *SMTP) client(ctx context.Context) (*gomail.Client, error) {
	config := &tls.Config{ServerName: s.host, RootCAs: s.roots, MinVersion: tls.VersionTLS12}
	dial := func(context.Context, string, string) (net.Conn, error) { // go-mail's own address has IPv6 without its brackets
		plain, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(s.host, strconv.Itoa(s.port)))
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { _ = plain.Close() })
		if !s.implicit {
			return plain, nil
		}
		encrypted := tls.Client(plain, config)
		return encrypted, encrypted.HandshakeContext(ctx)
	}
	options := []gomail.Option{
		gomail.WithPort(s.port), gomail.WithTimeout(sendTimeout), gomail.WithTLSConfig(config), gomail.WithTLSPolicy(s.policy),
		gomail.WithDialContextFunc(dial),
	}
	if s.implicit {
		options = append(options, gomail.WithSSL())
	}
	if s.user != "" {
		// go-mail sends no password without TLS but to this machine.
		options = append(options, gomail.WithUsername(s.user), gomail.WithPassword(s.password.Reveal()),
			gomail.WithOpportunisticSMTPAuth(gomail.SMTPAuthSCRAMSHA256, gomail.SMTPAuthPlain, gomail.SMTPAuthLogin))
	}
	return gomail.NewClient(s.host, options...)
}

// failed makes an error of go-mail's one of ours.
//
// SECURITY: go-mail's own quotes the recipient and whatever the server says.
func failed(err error) error {
	var sending *gomail.SendError
	if errors.As(err, &sending) {
		if sending.Reason == gomail.ErrSMTPRcptTo && !sending.IsTemp() && sending.ErrorCode() >= 500 {
			return fmt.Errorf("%w (%d)", ErrRefused, sending.ErrorCode())
		}
		return fmt.Errorf("%w: %s (%d)", ErrUnavailable, sending.Reason.String(), sending.ErrorCode())
	}
	var reply *textproto.Error
	if errors.As(err, &reply) {
		return fmt.Errorf("%w: it answers %d", ErrUnavailable, reply.Code)
	}
	var network net.Error
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) || errors.As(err, &network) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("%w: the SMTP session failed", ErrUnavailable)
}

// The longest address, and what is before its @ (RFC 5321, section 4.5.3.1).
const (
	maxAddress = 254
	maxLocal   = 64
)

// IsAddress reports whether s is a bare address in ASCII, local@domain.tld, and nothing else: no name, no comment, no quotes,
// no address by number, and nothing that could end a header's line.
func IsAddress(s string) bool {
	local, domain, ok := strings.Cut(s, "@")
	if !ok || len(s) > maxAddress || len(local) > maxLocal || !strings.Contains(domain, ".") {
		return false
	}
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, labelChars) != "" {
			return false
		}
	}
	parsed, err := stdmail.ParseAddress(s)
	return err == nil && parsed.Name == "" && parsed.Address == s && isPrintable(local)
}

const labelChars = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-"

func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
