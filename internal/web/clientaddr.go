package web

import (
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// proxies are the peers whose X-Forwarded-For is believed.
type proxies struct {
	trusted []netip.Prefix
	warned  atomic.Int64 // when the last warning was logged, in Unix seconds
}

func (p *proxies) trusts(addr netip.Addr) bool {
	return slices.ContainsFunc(p.trusted, func(prefix netip.Prefix) bool { return prefix.Contains(addr) })
}

// clientAddr is the client's address as far as the trusted proxies tell it: the last in X-Forwarded-For that is not one of theirs. It is
// the peer's where that is not trusted, or tells nothing.
//
// SECURITY: what stands before an address that no trusted proxy has written, or before one that can't be read, is the client's own claim.
func (k *Kit) clientAddr(r *http.Request) netip.Addr {
	peer := peerAddr(r)
	if len(k.proxies.trusted) == 0 || !k.proxies.trusts(peer) {
		return peer
	}
	for _, line := range slices.Backward(r.Header["X-Forwarded-For"]) {
		for more := true; more; {
			var entry string
			i := strings.LastIndexByte(line, ',')
			line, entry, more = line[:max(i, 0)], line[i+1:], i >= 0
			addr, ok := forwardedAddr(entry)
			switch {
			case !ok:
				k.warnOfUnreadable(peer)
				return peer
			case !k.proxies.trusts(addr):
				return addr
			}
		}
	}
	return peer
}

// forwardedAddr reads an address as proxies and load balancers write it: alone, with a port, IPv6 in brackets or not, in quotes or not.
func forwardedAddr(entry string) (netip.Addr, bool) {
	entry = strings.Trim(entry, " \t")
	if n := len(entry); n >= 2 && entry[0] == '"' && entry[n-1] == '"' {
		entry = entry[1 : n-1]
	}
	host, port := entry, ""
	switch {
	case strings.HasPrefix(entry, "["):
		var closed bool
		if host, port, closed = strings.Cut(entry[1:], "]"); !closed || port == ":" {
			return netip.Addr{}, false
		}
		if !strings.Contains(host, ":") || port != "" && port[0] != ':' {
			return netip.Addr{}, false
		}
		port = strings.TrimPrefix(port, ":")
	case strings.Count(entry, ":") == 1:
		if host, port, _ = strings.Cut(entry, ":"); port == "" {
			return netip.Addr{}, false
		}
	}
	if port != "" {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return netip.Addr{}, false
		}
	}
	addr, err := netip.ParseAddr(host)
	return addr.Unmap().WithZone(""), err == nil
}

// warnOfUnreadable says, once a minute at most, that clients of a proxy can't be told apart.
//
// SECURITY: the header is not shown: it can hold anything.
func (k *Kit) warnOfUnreadable(peer netip.Addr) {
	const pause = 60
	now, last := time.Now().Unix(), k.proxies.warned.Load()
	if now-last >= pause && k.proxies.warned.CompareAndSwap(last, now) {
		k.log.Warn("a trusted proxy sends an X-Forwarded-For that can't be read; such clients are counted as one, by the proxy's address",
			"proxy", peer.String())
	}
}

// peerAddr is the address of the connection's other end.
func peerAddr(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return peer.Addr().Unmap()
}
