package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"accesskeys/internal/config"
)

// healthTimeout bounds the question and its answer.
const healthTimeout = 5 * time.Second

// health asks a server whether it is ready, for containers that have nothing to ask with.
func health(ctx context.Context, inv invocation) error {
	flags, given := inv.flagSet("health")
	base := flags.String("url", "", "the server's address, such as https://keys.example.com; without it, the one of LISTEN_ADDR on this machine")
	cfg, err := inv.parseSome(flags, given, []string{"LISTEN_ADDR", "TLS_CERT_FILE", "TLS_KEY_FILE"})
	if err != nil {
		return err
	}
	transport := &http.Transport{} // no proxy of the environment's: it is a neighbour that is asked
	address := *base
	if address == "" {
		if address, err = localAddress(cfg); err != nil {
			return err
		}
		// SECURITY: the certificate is for the name that clients use, not for this machine's loopback.
		transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // it asks its own machine, sends no secret, and trusts the answer with the exit code alone
	}
	parsed, err := url.Parse(address)
	if err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "" {
		return config.Usagef("--url: it takes an address such as https://keys.example.com")
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, parsed.JoinPath("/readyz").String(), nil)
	if err != nil {
		return config.Usagef("--url: it takes an address such as https://keys.example.com")
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // without the address, in which a password may stand
		}
		return fmt.Errorf("not ready: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		var answer struct {
			Error struct {
				Message string `json:"message"`
			} `json:"error"`
		}
		_ = json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&answer) // not every server says why
		return fmt.Errorf("not ready: %s: %q", response.Status, cmp.Or(answer.Error.Message, "no reason was given"))
	}
	_, err = fmt.Fprintln(inv.stdout, "ready")
	return err
}

// localAddress is where the server of these settings answers on this machine.
func localAddress(cfg *config.Settings) (string, error) {
	host, port, err := net.SplitHostPort(cfg.ListenAddr)
	if err != nil || port == "0" || port == "" {
		return "", config.Usagef("LISTEN_ADDR has no fixed port: --url takes the server's address")
	}
	switch ip := net.ParseIP(host); {
	case host == "", ip != nil && ip.Equal(net.IPv4zero):
		host = "127.0.0.1"
	case ip != nil && ip.IsUnspecified():
		host = "::1"
	}
	scheme := "http"
	if cfg.TLSCertFile != "" {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port), nil
}
