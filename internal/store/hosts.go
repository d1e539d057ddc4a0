package store

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// askAgain is how long a host that is not what is looked for is left alone while another one has not answered yet.
const askAgain = 100 * time.Millisecond

// connectConfig connects to the host that takes writes, where the address names several.
func connectConfig(ctx context.Context, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	if err := chooseHost(ctx, cfg); err != nil {
		return nil, err
	}
	return pgx.ConnectConfig(ctx, cfg)
}

// chooseHost leaves of several hosts the one that is first to say that it is what target_session_attrs asks for. They are asked at
// the same time: a host that is gone, or hangs, doesn't answer at all, and asking one after the other would take up most of
// what a request has until the next is asked. While one hangs, the others are asked again and again, so that a standby that is
// promoted meanwhile is found at once.
func chooseHost(ctx context.Context, cfg *pgx.ConnConfig) error {
	hosts := hostsOf(cfg)
	if len(hosts) < 2 {
		return nil
	}
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	replies := make(chan reply)
	for i, host := range hosts {
		asking.Go(func() { ask(ctx, cfg.Config.Copy(), i, host, replies) })
	}
	failures := make([]error, len(hosts))
	for failed := 0; failed < len(hosts); {
		select {
		case r := <-replies:
			if r.err == nil {
				useHost(&cfg.Config, hosts[r.host])
				return nil
			}
			if failures[r.host] == nil {
				failed++
			}
			failures[r.host] = r.err
		case <-ctx.Done():
			return errors.Join(append(failures, ctx.Err())...)
		}
	}
	return errors.Join(failures...)
}

// reply is what became of asking a host.
type reply struct {
	host int
	err  error
}

// ask connects to one host again and again, to learn whether it is the one, until ctx ends.
func ask(ctx context.Context, cfg *pgconn.Config, host int, ways []*pgconn.FallbackConfig, replies chan<- reply) {
	useHost(cfg, ways)
	for {
		conn, err := pgconn.ConnectConfig(ctx, cfg)
		if err == nil {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), askAgain)
			_ = conn.Close(closing) // it has said what there was to know
			cancel()
		}
		select {
		case replies <- reply{host, err}:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(askAgain):
		case <-ctx.Done():
			return
		}
	}
}

// hostsOf are the ways to each host that an address names, in their order: with TLS and without, for example.
func hostsOf(cfg *pgx.ConnConfig) (hosts [][]*pgconn.FallbackConfig) {
	known := map[string]int{}
	for _, way := range append([]*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...) {
		address := net.JoinHostPort(way.Host, strconv.Itoa(int(way.Port)))
		i, is := known[address]
		if !is {
			i = len(hosts)
			known[address] = i
			hosts = append(hosts, nil)
		}
		hosts[i] = append(hosts[i], way)
	}
	return hosts
}

// useHost makes a configuration one for this host alone.
func useHost(cfg *pgconn.Config, ways []*pgconn.FallbackConfig) {
	cfg.Host, cfg.Port, cfg.TLSConfig, cfg.Fallbacks = ways[0].Host, ways[0].Port, ways[0].TLSConfig, ways[1:]
}
