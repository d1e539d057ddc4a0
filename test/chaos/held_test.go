package chaos

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"time"
)

// heldName begins the names of what held requests ask for. Nothing with such a name may ever be in the database.
const heldName = "held back "

// held is a write of a credential that is about to be revoked: its header and a part of its body are sent before the revocation, the
// rest when that has been answered.
type held struct {
	life     *life
	instance *instance
	conn     net.Conn
	rest     string
}

// hold begins such a request, nil where the server can't be reached.
func (c *checker) hold(l *life, r *instance) *held {
	conn, err := net.DialTimeout("tcp", r.addr, time.Second)
	if err != nil {
		return nil
	}
	body := fmt.Sprintf(`{"name":"%s%s","expire":3600%s}`, heldName, l.kind, l.bind)
	header := fmt.Sprintf("POST /v1.0/accesskeys HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
		r.addr, l.bearer, len(body))
	cut := rand.IntN(len(body) - 1)
	_ = conn.SetDeadline(time.Now().Add(callTimeout))
	if _, err := conn.Write([]byte(header + body[:cut])); err != nil {
		_ = conn.Close()
		return nil
	}
	return &held{life: l, instance: r, conn: conn, rest: body[cut:]}
}

// release sends the rest, and judges the answer: the revocation was confirmed before.
func (c *checker) release(ctx context.Context, h *held) {
	defer func() { _ = h.conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = h.conn.SetDeadline(time.Now()) })
	defer stop()
	status := 0
	sent := c.fleet.now()
	if _, err := h.conn.Write([]byte(h.rest)); err == nil {
		if response, err := http.ReadResponse(bufio.NewReader(h.conn), nil); err == nil {
			status = response.StatusCode
			_ = response.Body.Close()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tally.n[released]++
	switch status {
	case http.StatusOK:
		c.tally.n[written]++
		c.complain("VIOLATION (%s): %s confirmed the revocation at %.6f; instance %s wrote what was held back, sent %.6f",
			h.life.kind, h.life.by, time.Duration(h.life.confirmed.Load()).Seconds(), h.instance.name, sent.Seconds())
	case http.StatusUnauthorized, http.StatusForbidden:
		c.tally.n[heldRefused]++
	case 0, http.StatusServiceUnavailable, http.StatusBadRequest: // it was held back for longer than a request may take
	default:
		c.complain("instance %s answered a request that was held back (%s) with %d", h.instance.name, h.life.kind, status)
	}
}

// drop ends a request whose credential was not revoked.
func (h *held) drop() { _ = h.conn.Close() }

// checkNothingHeld looks into the database for what no held request may have written, whatever it was answered.
func (c *checker) checkNothingHeld() {
	for server := len(c.fleet.cluster.direct) - 1; server >= 0; server-- {
		rows, err := c.fleet.cluster.query(c.fleet.t.Context(), server, `SELECT name FROM accesskeys WHERE name LIKE $1`, heldName+"%")
		if err != nil {
			continue // it was left behind
		}
		c.mu.Lock()
		if len(rows) > 0 {
			c.tally.n[written] += len(rows)
			c.complain("VIOLATION: the database has %d keys that requests asked for which were held back beyond their revocation, the first %q", len(rows), rows[0])
		}
		c.mu.Unlock()
		return
	}
}
