package web

import (
	"bytes"
	"encoding/hex"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// The types below write themselves into the encoder's own buffer: a list of a hundred keys has six hundred of them.

// ID is a UUID as the contract writes it.
type ID uuid.UUID

// MarshalJSONTo implements json.MarshalerTo.
func (id ID) MarshalJSONTo(enc *jsontext.Encoder) error {
	return enc.WriteValue(id.AppendJSON(enc.AvailableBuffer()))
}

// AppendJSON implements Appender.
func (id ID) AppendJSON(text []byte) []byte {
	text = append(text, '"')
	for i, part := range [...][]byte{id[0:4], id[4:6], id[6:8], id[8:10], id[10:16]} {
		if i > 0 {
			text = append(text, '-')
		}
		text = hex.AppendEncode(text, part)
	}
	return append(text, '"')
}

// Timestamp is a point in time as the contract writes it: UTC, six fractional digits, Z.
type Timestamp time.Time

// TimestampLayout is its layout for package time.
const TimestampLayout = "2006-01-02T15:04:05.000000Z"

// MarshalJSONTo implements json.MarshalerTo.
func (t Timestamp) MarshalJSONTo(enc *jsontext.Encoder) error {
	return enc.WriteValue(t.AppendJSON(enc.AvailableBuffer()))
}

// AppendJSON implements Appender.
func (t Timestamp) AppendJSON(text []byte) []byte {
	return append(time.Time(t).UTC().AppendFormat(append(text, '"'), TimestampLayout), '"')
}

// Appender is what appends the same bytes as the encoder would, for answers that are asked for more often than all others together.
type Appender interface {
	AppendJSON(text []byte) []byte
}

// AppendString appends a string in quotes, as the encoder would.
func AppendString(text []byte, s string) []byte {
	text, err := jsontext.AppendQuote(text, s)
	if err != nil {
		panic(err) // as in encode
	}
	return text
}

// List is a page of results.
type List[T any] struct {
	Result        []T     `json:"result"`
	NextPageToken *string `json:"next_page_token"`
}

// bodies are buffers that answers are encoded into, one after the other.
var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// maxPooledBody is the size up to which a buffer is used again.
const maxPooledBody = 64 << 10

// WriteJSON encodes to a buffer first, so that an error there can still become a 500. The encoder is given a pointer, because it
// would copy what it can't address.
func WriteJSON[T any](w http.ResponseWriter, code int, v T) {
	body := bodies.Get().(*bytes.Buffer)
	body.Reset()
	encode(body, &v)
	WriteBody(w, code, "application/json", body.Bytes())
	if body.Cap() <= maxPooledBody {
		bodies.Put(body)
	}
}

// WriteList is WriteJSON for what may be large: it takes no more memory than the list has, and ever less while the client reads it.
func WriteList[T any](w http.ResponseWriter, r *http.Request, l List[T]) {
	var body chunks
	encode(&body, &l)
	share := &EventOf(r).recorder.share().answer
	share.Keep(body.memory())
	setBody(w, http.StatusOK, "application/json", body.length)
	for len(body.filled) > 0 {
		_, err := w.Write(body.first())
		body.drop()
		if err != nil {
			return // the client has left
		}
		share.Keep(body.memory())
	}
}

// encode writes a value and a newline, so that a terminal's next prompt has a line of its own.
func encode(to io.Writer, v any) {
	if buffer, ok := to.(*bytes.Buffer); ok {
		if appender, ok := v.(Appender); ok {
			buffer.Write(append(appender.AppendJSON(buffer.AvailableBuffer()), '\n'))
			return
		}
	}
	err := json.MarshalWrite(to, v)
	if err == nil {
		_, err = to.Write(newline)
	}
	if err != nil {
		// Only a defect in our own types leads here; Observe turns it into a logged 500.
		panic(err)
	}
}

var newline = []byte{'\n'}

// WriteBody answers with a body.
func WriteBody(w http.ResponseWriter, code int, contentType string, body []byte) {
	setBody(w, code, contentType, len(body))
	_, _ = w.Write(body) // a client that has left is no error of ours
}

// setBody begins an answer with a body.
func setBody(w http.ResponseWriter, code int, contentType string, length int) {
	header := w.Header()
	values := []string{contentType, strconv.Itoa(length)}
	header["Content-Type"], header["Content-Length"] = values[:1:1], values[1:]
	w.WriteHeader(code)
}
