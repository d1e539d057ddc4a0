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
)

// conn is a keep-alive connection with the least client that will do, so that what is measured is the server.
type conn struct {
	net.Conn
	r *bufio.Reader
}

func dial(b testing.TB, addr string) *conn {
	b.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	return &conn{Conn: c, r: bufio.NewReaderSize(c, 64<<10)}
}

func (c *conn) close() { _ = c.Close() }

// do sends a request and reads its whole answer, which must be a 200.
func (c *conn) do(b testing.TB, request []byte) (http.Header, []byte) {
	b.Helper()
	if _, err := c.Write(request); err != nil {
		b.Fatal(err)
	}
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		b.Fatalf("%v: status %d: %s", err, res.StatusCode, body)
	}
	return res.Header, body
}

// spin sends a request n times, reading no more of an answer than where it ends.
func (c *conn) spin(request []byte, n int) error {
	for range n {
		if _, err := c.Write(request); err != nil {
			return err
		}
		status, err := c.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(status, []byte("HTTP/1.1 200")) {
			return fmt.Errorf("answered %q", status)
		}
		length := -1
		for {
			line, err := c.r.ReadSlice('\n')
			if err != nil {
				return err
			}
			if len(line) <= 2 {
				break
			}
			if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
				if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
					return err
				}
			}
		}
		if _, err := c.r.Discard(length); err != nil {
			return err
		}
	}
	return nil
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
