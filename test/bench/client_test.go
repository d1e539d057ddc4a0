//go:build bench

package bench

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"

	"accesskeys/internal/servertest"
)

// conn is a keep-alive connection with the least client that will do, so that what is measured is the server.
type conn struct {
	net.Conn
	r *bufio.Reader
}

func dial(b testing.TB, addr string) *conn {
	b.Helper()
	c := servertest.Must(net.Dial("tcp", addr))(b)
	return &conn{Conn: c, r: bufio.NewReaderSize(c, 64<<10)}
}

func (c *conn) close() { _ = c.Close() }

// do sends a request and reads its whole answer, which must be a 200.
func (c *conn) do(b testing.TB, request []byte) (http.Header, []byte) {
	b.Helper()
	servertest.Must(c.Write(request))(b)
	res, err := http.ReadResponse(c.r, nil)
	servertest.OK(b, err)
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		b.Fatalf("%v: status %d: %s", err, res.StatusCode, body)
	}
	return res.Header, body
}

// exchange sends a request and reads no more of its answer than the status, and where it ends.
func (c *conn) exchange(request []byte) (status int, err error) {
	if _, err := c.Write(request); err != nil {
		return 0, err
	}
	length := -1
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		switch {
		case status == 0:
			if status = statusOf(line); status == 0 {
				return 0, fmt.Errorf("answered %q", line)
			}
		case len(line) > 2:
			if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
				if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
					return 0, err
				}
			}
		default:
			if length < 0 {
				return 0, fmt.Errorf("an answer without Content-Length")
			}
			_, err := c.r.Discard(length)
			return status, err
		}
	}
}

// ok sends a request whose answer must be a 200.
func (c *conn) ok(request []byte) error {
	status, err := c.exchange(request)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("answered %d", status)
	}
	return err
}

// statusOf reads an answer's first line; 0 where it is none.
func statusOf(line []byte) int {
	rest, ok := bytes.CutPrefix(line, []byte("HTTP/1.1 "))
	if !ok || len(rest) < 3 {
		return 0
	}
	status, _ := strconv.Atoi(string(rest[:3]))
	return status
}

// requests are what a client draws from, at random.
type requests [][]byte

// gets are the same GET by each of the credentials, in one piece of memory.
func gets(path string, credentials []string) requests {
	var all []byte
	ends := make([]int, 0, len(credentials))
	for _, credential := range credentials {
		all = append(all, get(path, credential)...)
		ends = append(ends, len(all))
	}
	rs := make(requests, 0, len(ends))
	start := 0
	for _, end := range ends {
		rs = append(rs, all[start:end:end])
		start = end
	}
	return rs
}

func get(path, bearer string) []byte {
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\n\r\n", path, bearer)
}

func post(path, bearer, body string) []byte {
	authorization := ""
	if bearer != "" {
		authorization = "Authorization: Bearer " + bearer + "\r\n"
	}
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: bench\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		path, authorization, len(body), body)
}
