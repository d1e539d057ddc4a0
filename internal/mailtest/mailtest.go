// Package mailtest is a mail server for tests: it speaks SMTP on a port of its own and keeps what it is given.
package mailtest

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Mail is one mail as it came over the wire.
type Mail struct {
	From, To  string   // of the envelope, with what followed the addresses
	Data      string   // header and body, lines ending in CRLF
	Login     string   // "user:password", "" where there was none
	Encrypted bool     // whether TLS was on
	Commands  []string // the session's, without what follows AUTH
}

// Options change what the server does.
type Options struct {
	Auth     bool           // offers AUTH PLAIN
	StartTLS bool           // offers STARTTLS
	TLS      bool           // speaks TLS from the first byte
	Answers  map[string]int // code instead of the usual one by command, such as "RCPT": 550
	Silent   bool           // accepts connections and never says a word
}

// Server is a mail server on a loopback address.
type Server struct {
	Addr  string
	Roots *x509.CertPool // trusts its certificate

	options  Options
	tls      *tls.Config
	listener net.Listener
	sessions sync.WaitGroup

	mu    sync.Mutex
	open  map[net.Conn]bool
	mails []Mail
	dials int
	codes map[string]int // Answers, as they stand
	held  chan struct{}  // closed when mails may be answered, nil where they always may
}

// Start starts one that ends with the test.
func Start(t testing.TB, options Options) *Server {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		Addr: listener.Addr().String(), Roots: x509.NewCertPool(), options: options, listener: listener,
		open: map[net.Conn]bool{}, codes: options.Answers,
	}
	s.certify(t)
	s.sessions.Go(s.accept)
	t.Cleanup(s.close)
	return s
}

// certify gives the server a certificate of its own making.
func (s *Server) certify(t testing.TB) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s.Roots.AddCert(certificate)
	s.tls = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
}

// Answer sets the code of the answers to a command from now on, 0 for the usual one.
func (s *Server) Answer(command string, code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	codes := map[string]int{command: code}
	for other, kept := range s.codes {
		if other != command {
			codes[other] = kept
		}
	}
	s.codes = codes
}

// Hold keeps the answers to mails back, which are taken as ever, until release is called.
func (s *Server) Hold() (release func()) {
	held := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = held
	return sync.OnceFunc(func() { close(held) })
}

// Mails are all that were taken, in order.
func (s *Server) Mails() []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mails)
}

// To are the mails to an address.
func (s *Server) To(address string) (to []Mail) {
	for _, m := range s.Mails() {
		if strings.HasPrefix(m.To, "<"+address+">") {
			to = append(to, m)
		}
	}
	return to
}

// Dials is how many connections were made.
func (s *Server) Dials() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials
}

// Code is the six digits in a mail, "" where there are none.
func (m Mail) Code() string {
	_, body, _ := strings.Cut(m.Data, "\r\n\r\n")
	return regexp.MustCompile(`\b[0-9]{6}\b`).FindString(body)
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.open[conn] = true
		s.dials++
		s.mu.Unlock()
		s.sessions.Go(func() {
			s.serve(conn)
			s.mu.Lock()
			delete(s.open, conn)
			s.mu.Unlock()
			_ = conn.Close()
		})
	}
}

func (s *Server) close() {
	_ = s.listener.Close()
	s.mu.Lock()
	for conn := range s.open {
		_ = conn.Close()
	}
	s.mu.Unlock()
	s.sessions.Wait()
}

// session is one connection's.
type session struct {
	server *Server
	conn   net.Conn
	in     *bufio.Reader
	mail   Mail
}

func (s *Server) serve(conn net.Conn) {
	c := &session{server: s, conn: conn, in: bufio.NewReader(conn)}
	switch {
	case s.options.Silent:
		_, _ = c.in.ReadByte() // till the other end leaves
		return
	case s.options.TLS:
		c.encrypt()
	}
	c.say("CONNECT", 220, "mail.example ESMTP")
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return
		}
		command, rest, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		command = strings.ToUpper(command)
		c.mail.Commands = append(c.mail.Commands, command)
		if !c.obey(command, rest) {
			return
		}
	}
}

// obey answers a command and reports whether there may be more.
func (c *session) obey(command, rest string) bool {
	switch command {
	case "EHLO", "HELO":
		c.say(command, 250, append([]string{"mail.example"}, c.extensions()...)...)
	case "STARTTLS":
		c.say(command, 220, "go on")
		c.encrypt()
	case "AUTH":
		_, encoded, _ := strings.Cut(rest, " ")
		plain, _ := base64.StdEncoding.DecodeString(encoded)
		c.mail.Login = strings.ReplaceAll(strings.TrimPrefix(string(plain), "\x00"), "\x00", ":")
		c.say(command, 235, "welcome")
	case "MAIL":
		c.mail.From = strings.TrimPrefix(rest, "FROM:")
		c.say(command, 250, "ok")
	case "RCPT":
		c.mail.To = strings.TrimPrefix(rest, "TO:")
		c.say(command, 250, "ok")
	case "DATA":
		if c.say(command, 354, "go on") != 354 {
			return true
		}
		c.data()
	case "QUIT":
		c.say(command, 221, "bye")
		return false
	default:
		c.say(command, 250, "ok")
	}
	return true
}

func (c *session) extensions() (offered []string) {
	if c.server.options.StartTLS && !c.mail.Encrypted {
		offered = append(offered, "STARTTLS")
	}
	if c.server.options.Auth {
		offered = append(offered, "AUTH PLAIN")
	}
	return offered
}

// data reads a mail, and keeps it before it says so.
func (c *session) data() {
	c.mail.Data = ""
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return
		}
		if line == ".\r\n" {
			break
		}
		c.mail.Data += strings.TrimPrefix(line, ".")
	}
	c.server.mu.Lock()
	if c.server.codes["DATAEND"] == 0 {
		m := c.mail
		m.Commands = slices.Clone(m.Commands)
		c.server.mails = append(c.server.mails, m)
	}
	held := c.server.held
	c.server.mu.Unlock()
	if held != nil {
		<-held
	}
	c.say("DATAEND", 250, "taken")
}

func (c *session) encrypt() {
	encrypted := tls.Server(c.conn, c.server.tls)
	c.mail.Encrypted = encrypted.HandshakeContext(context.Background()) == nil
	c.conn, c.in = encrypted, bufio.NewReader(encrypted)
}

// say answers, and returns the code that it gave.
func (c *session) say(command string, code int, lines ...string) int {
	c.server.mu.Lock()
	if other := c.server.codes[command]; other != 0 {
		// As servers do, it tells whom it speaks of.
		code, lines = other, []string{"no: " + c.mail.To + " " + c.mail.Login}
	}
	c.server.mu.Unlock()
	for i, line := range lines {
		separator := "-"
		if i == len(lines)-1 {
			separator = " "
		}
		_, _ = fmt.Fprintf(c.conn, "%d%s%s\r\n", code, separator, line)
	}
	return code
}
