package main

import (
	"bufio"
	"io"
	"net"
)

// frame is one of HTTP/2 (RFC 9113, section 4.1).
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	return append([]byte{
		byte(n >> 16), byte(n >> 8), byte(n), kind, flags, byte(stream >> 24), byte(stream >> 16), byte(stream >> 8), byte(stream),
	}, payload...)
}

const frameHeaders, frameReset, frameSettings = 1, 3, 4

// headerBlock is a request's header in literals that are not indexed (RFC 7541, section 6.2.2).
func headerBlock(method, path string, more ...string) (block []byte) {
	fields := append([]string{":method", method, ":scheme", "https", ":authority", "x", ":path", path}, more...)
	for i := 0; i < len(fields); i += 2 {
		block = append(block, 0)
		for _, text := range fields[i : i+2] {
			block = append(append(block, byte(len(text))), text...)
		}
	}
	return block
}

const endStream, endHeaders = 0x1, 0x4

// nextFrame reads one, and forgets what is in it.
func nextFrame(in *bufio.Reader) (kind byte, err error) {
	var header [9]byte
	if _, err := io.ReadFull(in, header[:]); err != nil {
		return 0, err
	}
	_, err = in.Discard(int(header[0])<<16 | int(header[1])<<8 | int(header[2]))
	return header[3], err
}

// beginHTTP2 sends what a connection begins with.
func beginHTTP2(conn net.Conn, settings string) {
	_, _ = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	_, _ = conn.Write(frame(frameSettings, 0, 0, []byte(settings)))
}
