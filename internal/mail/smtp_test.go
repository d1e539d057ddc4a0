package mail_test

import (
	"context"
	"errors"
	"io"
	stdmail "net/mail"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/mail"
	"accesskeys/internal/mailtest"
	"accesskeys/internal/secret"
)

const (
	recipient = "ada@example.com"
	from      = "no-reply@keys.example"
)

func newSMTP(t *testing.T, address, from string) *mail.SMTP {
	t.Helper()
	sender, err := mail.NewSMTP(secret.New(address), from)
	if err != nil {
		t.Fatalf("%s: %v", address, err)
	}
	return sender
}

// send sends a mail by this mail server.
func send(t *testing.T, address string) error {
	t.Helper()
	return newSMTP(t, address, from).SendAccountExists(t.Context(), recipient)
}

// A mail is whole: its envelope, its header, its body; and it does not name the machine that it comes from.
func TestCodeArrivesInAMail(t *testing.T) {
	t.Parallel()
	server := mailtest.Start(t, mailtest.Options{})
	sender := newSMTP(t, "smtp://"+server.Addr, "Access keys <"+from+">")
	if err := sender.SendCode(t.Context(), recipient, secret.New("012345")); err != nil {
		t.Fatal(err)
	}
	if err := sender.SendAccountExists(t.Context(), recipient); err != nil {
		t.Fatal(err)
	}
	mails := server.Mails()
	if len(mails) != 2 {
		t.Fatalf("mails %v", mails)
	}
	for i, m := range mails {
		if m.From != "<"+from+">" || m.To != "<"+recipient+">" {
			t.Errorf("envelope %q to %q", m.From, m.To)
		}
		read, err := stdmail.ReadMessage(strings.NewReader(m.Data))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"From": `"Access keys" <` + from + `>`, "To": "<" + recipient + ">", "Auto-Submitted": "auto-generated",
			"Subject": []string{"Your sign-up code", "About your sign-up"}[i],
		} {
			if got := read.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if id := read.Header.Get("Message-Id"); !strings.HasSuffix(id, "@keys.example>") {
			t.Errorf("Message-Id %q", id)
		}
		if _, err := read.Header.Date(); err != nil {
			t.Errorf("Date: %v", err)
		}
		body, err := io.ReadAll(read.Body)
		if err != nil || len(body) < 100 {
			t.Errorf("body %q: %v", body, err)
		}
	}
	if mails[0].Code() != "012345" || mails[1].Code() != "" {
		t.Errorf("codes %q and %q", mails[0].Code(), mails[1].Code())
	}
}

// The password goes over TLS alone, but to this machine, and TLS means that the certificate is the server's.
func TestPasswordIsSentOverTLS(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		scheme  string
		options mailtest.Options
	}{
		"STARTTLS":           {"smtp", mailtest.Options{Auth: true, StartTLS: true}},
		"TLS from the start": {"smtps", mailtest.Options{Auth: true, TLS: true}},
	} {
		server := mailtest.Start(t, test.options)
		sender := newSMTP(t, test.scheme+"://user%40x:p%3Ass@"+server.Addr, from)
		if err := sender.SendAccountExists(t.Context(), recipient); !errors.Is(err, mail.ErrUnavailable) || len(server.Mails()) != 0 {
			t.Errorf("%s: a certificate of anybody's is taken: %v", name, err)
		}
		sender.Trust(server.Roots)
		if err := sender.SendAccountExists(t.Context(), recipient); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if m := server.Mails()[0]; m.Login != "user@x:p:ss" || !m.Encrypted {
			t.Errorf("%s: login %q, encrypted %t", name, m.Login, m.Encrypted)
		}
	}
	// A server on this machine may have no TLS.
	server := mailtest.Start(t, mailtest.Options{Auth: true})
	if err := newSMTP(t, "smtp://u:p@"+server.Addr+"?tls=none&from="+from, "").SendAccountExists(t.Context(), recipient); err != nil {
		t.Error(err)
	}
	if m := server.Mails()[0]; m.Login != "u:p" || m.Encrypted || m.From != "<"+from+">" {
		t.Errorf("mail %+v", m)
	}
}

// A server elsewhere gets nothing without TLS. This one is on this machine, under a name that is not taken for it.
func TestNothingIsSentElsewhereWithoutTLS(t *testing.T) {
	t.Parallel()
	server := mailtest.Start(t, mailtest.Options{Auth: true})
	err := send(t, "smtp://u:p@"+strings.Replace(server.Addr, "127.0.0.1", "[::ffff:127.0.0.1]", 1))
	if !errors.Is(err, mail.ErrUnavailable) || len(server.Mails()) != 0 || server.Dials() != 1 {
		t.Errorf("error %v, mails %v over %d connections", err, server.Mails(), server.Dials())
	}
	if err := send(t, "smtp://u:p@"+server.Addr); err != nil { // the control
		t.Error(err)
	}
}

// Whatever a server says, the error has its code and nothing of the recipient, the password or the server's words.
func TestErrorsTellOnlyTheServersCodes(t *testing.T) {
	t.Parallel()
	for command, code := range map[string]int{
		"CONNECT": 554, "EHLO": 421, "AUTH": 535, "MAIL": 451, "RCPT": 450, "DATA": 554, "DATAEND": 552,
	} {
		server := mailtest.Start(t, mailtest.Options{Auth: true, Answers: map[string]int{command: code}})
		err := send(t, "smtp://u:hunter2@"+server.Addr)
		if !errors.Is(err, mail.ErrUnavailable) || errors.Is(err, mail.ErrRefused) || len(server.Mails()) != 0 {
			t.Errorf("%s %d: error %v, mails %v", command, code, err, server.Mails())
		}
		if regexp.MustCompile("ada|hunter2|no:").MatchString(err.Error()) {
			t.Errorf("%s %d: error %v", command, code, err)
		}
	}
	refusing := mailtest.Start(t, mailtest.Options{Answers: map[string]int{"RCPT": 550}})
	err := send(t, "smtp://"+refusing.Addr)
	if !errors.Is(err, mail.ErrRefused) || strings.Contains(err.Error(), "ada") {
		t.Errorf("a refused recipient: error %v", err)
	}
	// What fails once the mail is taken is no failure.
	rude := mailtest.Start(t, mailtest.Options{Answers: map[string]int{"RSET": 500, "QUIT": 500}})
	if err := send(t, "smtp://"+rude.Addr); err != nil || len(rude.Mails()) != 1 {
		t.Errorf("a rude goodbye: error %v, mails %v", err, rude.Mails())
	}
}

// A mail server that is unreachable or silent is given up on within the caller's time.
func TestDeadMailServerIsGivenUpOn(t *testing.T) {
	t.Parallel()
	silent := mailtest.Start(t, mailtest.Options{Silent: true})
	var took time.Duration
	for try := 0; try < 5 && (try == 0 || took > 2*time.Second); try++ { // again where the machine was busy
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		started := time.Now()
		err := newSMTP(t, "smtp://"+silent.Addr, from).SendAccountExists(ctx, recipient)
		took = time.Since(started)
		cancel()
		if !errors.Is(err, mail.ErrUnavailable) {
			t.Errorf("silent: error %v", err)
		}
	}
	if took > 2*time.Second {
		t.Errorf("a silent mail server is given up on after %v", took)
	}
	if err := send(t, "smtp://127.0.0.1:1"); !errors.Is(err, mail.ErrUnavailable) {
		t.Errorf("away: error %v", err)
	}
}

// Neither a setting nor an error about it says what was in it.
func TestAddressesOfMailServersAreChecked(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"", "hunter2", "mail.example:25", "http://u:hunter2@h", "smtp:hunter2", "smtp://u:hunter2@", "smtp://u:hunter2@h:port",
		"smtp://u:hunter2@h:0", "smtp://u:hunter2@h:65536", "smtp://u:hunter2@h/path", "smtp://u:hunter2@h#f", "smtp://u:hunter2@h?tls=maybe",
		"smtp://u:hunter2@h?tls=none", "smtps://h?tls=none&x=hunter2", "smtps://h?tls=none", "smtp://h?x=1", "smtp://h?from=a%40b.c&from=a%40b.c",
		"smtp://u:hunter2@h?%zz", "smtp://u:hunter2%zz@h",
	} {
		_, err := mail.NewSMTP(secret.New(address), from)
		if !errors.Is(err, mail.ErrURL) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: error %v", address, err)
		}
	}
	for _, address := range []string{"smtp://h", "smtp://h:25/", "smtps://u:p@h", "smtp://[::1]:25?tls=none", "smtp://u:p@localhost?tls=none", "smtp://h?tls=none"} {
		if _, err := mail.NewSMTP(secret.New(address), from); err != nil {
			t.Errorf("%q: %v", address, err)
		}
	}
	for _, sender := range []string{"", "no-reply", "a@b", "a@b.c, d@e.f", "a@b.c\r\nBcc: x@y.z", "A <a@b.c"} {
		if _, err := mail.NewSMTP(secret.New("smtp://h"), sender); !errors.Is(err, mail.ErrFrom) {
			t.Errorf("sender %q: error %v", sender, err)
		}
	}
}

// What could be more than one address, or more than an address, is none.
func TestOnlyBareAddressesAreAddresses(t *testing.T) {
	t.Parallel()
	good := []string{
		"ada@example.com", "a@b.c", "a.b+c_d-e@sub.example.co", "o'hara@example.com", "A@EXAMPLE.COM", "1@1.example",
		"a@xn--bcher-kva.example", strings.Repeat("a", 64) + "@example.com", "a@" + strings.Repeat("b", 63) + ".example",
	}
	for _, s := range good {
		if !mail.IsAddress(s) {
			t.Errorf("%q is refused", s)
		}
	}
	bad := []string{
		"", "ada", "@example.com", "ada@", "ada@localhost", "ada@example.com.", "ada@.example.com", "ada@example..com", "ada@-b.example",
		"ada@b-.example", "ada@[127.0.0.1]", "ada@127.0.0.1@example.com", "ada@exam ple.com", " ada@example.com", "ada@example.com ",
		"Ada <ada@example.com>", "<ada@example.com>", "ada@example.com, b@example.com", "ada@example.com;b@example.com", `"a b"@example.com`,
		`"ada"@example.com`, "ada(comment)@example.com", "ada@example.com(comment)", "ada@example.com\r\nBcc: b@example.com", "ada\r\n@example.com",
		"ada@example.com\n", "ada@example.com\x00", "a\x00da@example.com", "ada\t@example.com", "äda@example.com", "ada@exämple.com",
		".ada@example.com", "ada.@example.com", "a..b@example.com", "ada@example.com>", "ada@example.com> SIZE=1", "ada@example_com.x",
		strings.Repeat("a", 65) + "@example.com", "a@" + strings.Repeat("b", 64) + ".example", "a@" + strings.Repeat("b.", 127) + "cc",
	}
	for _, s := range bad {
		if mail.IsAddress(s) {
			t.Errorf("%q is taken", s)
		}
	}
	// The same, should one ever come past that check.
	server := mailtest.Start(t, mailtest.Options{})
	sender := newSMTP(t, "smtp://"+server.Addr, from)
	for _, s := range bad {
		if err := sender.SendAccountExists(t.Context(), s); !errors.Is(err, mail.ErrRefused) {
			t.Errorf("%q: error %v", s, err)
		}
	}
	if server.Dials() != 0 {
		t.Errorf("%d connections", server.Dials())
	}
	if err := sender.SendAccountExists(t.Context(), good[3]); err != nil || !slices.Equal(server.Mails()[0].Commands[1:4], []string{"NOOP", "MAIL", "RCPT"}) {
		t.Errorf("error %v, mails %v", err, server.Mails())
	}
}
