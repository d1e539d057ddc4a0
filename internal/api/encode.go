package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
)

// timestamp is a point in time as the contract writes it: UTC, six fractional digits, Z.
type timestamp time.Time

const timestampLayout = "2006-01-02T15:04:05.000000Z"

// MarshalText implements encoding.TextMarshaler.
func (t timestamp) MarshalText() ([]byte, error) {
	return time.Time(t).UTC().AppendFormat(make([]byte, 0, len(timestampLayout)), timestampLayout), nil
}

// list is a page of results.
type list[T any] struct {
	Result        []T     `json:"result"`
	NextPageToken *string `json:"next_page_token"`
}

// writeJSON encodes to a buffer first, so that an error there can still become a 500.
func writeJSON(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		// Only a defect in our own types leads here; observe turns it into a logged 500.
		panic(err)
	}
	writeBody(w, code, "application/json", body)
}

func writeBody(w http.ResponseWriter, code int, contentType string, body []byte) {
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body) // a client that has left is no error of ours
}
