package postgres

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

const (
	// askAgain is how long a host that is not what is looked for is left alone while another one has not answered yet.
	askAgain = 100 * time.Millisecond
	// doubtFor is how long others have to answer once a host that is doubted has.
	doubtFor = 300 * time.Millisecond
)

// host is a database server that DATABASE_URL names, with the ways to it in their order: by TLS and without, for example.
type host struct {
	address string
	ways    []*pgconn.FallbackConfig
}

// hostsOf are the hosts of a configuration, in their order.
func hostsOf(cfg *pgconn.Config) (hosts []host) {
	known := map[string]int{}
	for _, way := range append([]*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...) {
		address := net.JoinHostPort(way.Host, strconv.Itoa(int(way.Port)))
		i, is := known[address]
		if !is {
			i = len(hosts)
			known[address] = i
			hosts = append(hosts, host{address: address})
		}
		hosts[i].ways = append(hosts[i].ways, way)
	}
	return hosts
}

// use makes a configuration one for this host alone, by its own ways to it: the driver knows a client's certificate by the tls.Config of
// the one copy of a configuration that it belongs to.
func (h host) use(cfg *pgconn.Config) {
	for _, own := range hostsOf(cfg) {
		if own.address == h.address {
			way := own.ways[0]
			cfg.Host, cfg.Port, cfg.TLSConfig, cfg.Fallbacks = way.Host, way.Port, way.TLSConfig, own.ways[1:]
			return
		}
	}
}

// connectConfig connects to the host that takes writes, where the address names several.
func connectConfig(ctx context.Context, cfg *pgx.ConnConfig) (*pgx.Conn, error) {
	chosen, err := chooseHost(ctx, &cfg.Config, nil)
	if err != nil {
		return nil, err
	}
	chosen.use(&cfg.Config)
	return pgx.ConnectConfig(ctx, cfg)
}

// chooseHost returns, of several hosts, the one that is first to say that it is what target_session_attrs asks for. They are asked at
// the same time: a host that is gone, or hangs, doesn't answer at all, and asking one after the other would take up most of
// what a request has until the next is asked. While one hangs, the others are asked again and again, so that a standby that is
// promoted meanwhile is found at once.
//
// The doubted one, if any, comes last. It has just failed: it may have been failed over, live on, and say that it takes writes.
func chooseHost(ctx context.Context, cfg *pgconn.Config, doubted *host) (host, error) {
	hosts := hostsOf(cfg)
	if len(hosts) == 1 {
		return hosts[0], nil
	}
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	replies := make(chan reply)
	for i, h := range hosts {
		asking.Go(func() { ask(ctx, cfg.Copy(), i, h, replies) })
	}
	failures := make([]error, len(hosts))
	var last *host // the doubted one, once it has said yes
	var patience <-chan time.Time
	for failed := 0; failed < len(hosts); {
		if last != nil && failed == len(hosts)-1 {
			return *last, nil
		}
		select {
		case r := <-replies:
			switch {
			case r.err != nil:
				if failures[r.host] == nil {
					failed++
				}
				failures[r.host] = r.err
			case doubted == nil || hosts[r.host].address != doubted.address:
				return hosts[r.host], nil
			case last == nil:
				last, patience = &hosts[r.host], time.After(doubtFor)
			}
		case <-patience:
			return *last, nil
		case <-ctx.Done():
			return host{}, errors.Join(errors.Join(failures...), ctx.Err())
		}
	}
	return host{}, errors.Join(failures...)
}

// reply is what became of asking a host.
type reply struct {
	host int
	err  error
}

// ask connects to one host again and again, to learn whether it is the one, until ctx ends.
func ask(ctx context.Context, cfg *pgconn.Config, number int, h host, replies chan<- reply) {
	h.use(cfg)
	for {
		conn, err := pgconn.ConnectConfig(ctx, cfg)
		if err == nil {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), askAgain)
			_ = conn.Close(closing) // it has said what there was to know
			cancel()
		}
		select {
		case replies <- reply{number, err}:
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
