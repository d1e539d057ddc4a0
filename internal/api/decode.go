package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"accesskeys/internal/rules"
)

const (
	maxBody   = 64 << 10
	maxName   = 255  // characters
	maxDetail = 4096 // characters
)

// object is a request's body: its fields by their exact names, without those that are null. Its methods read one field
// each and gather what is wrong with it; err tells whether anything was.
type object struct {
	fields  map[string]jsontext.Value
	details []detail
}

// decodeObject reads a body that must be one JSON object in UTF-8, with no name twice and nothing after it; an empty
// body counts as {}. The Content-Type is not looked at: VoIPBIN does not, and no cookie authenticates here.
func decodeObject(w http.ResponseWriter, r *http.Request) (*object, error) {
	body, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	if len(bytes.Trim(body, " \t\r\n")) == 0 { // the space of JSON, not all of Unicode's
		return &object{}, nil
	}
	return parseObject(body)
}

// decodeRequiredObject is decodeObject for routes that need a body: an empty one is no JSON.
func decodeRequiredObject(w http.ResponseWriter, r *http.Request) (*object, error) {
	body, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	return parseObject(body)
}

// readBody reads the body to its end. SECURITY: a client can take its time for that. So the credential is checked again: who holds a
// request back while the credential is revoked, has nothing of it.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	ev := eventOf(r)
	if ev.bodyRead {
		return ev.body, nil
	}
	if encoded(r) {
		w.Header().Set("Accept-Encoding", "identity")
		return nil, &problem{
			code: http.StatusUnsupportedMediaType, reason: reasonUnsupportedMediaType, message: "The body must be sent without a Content-Encoding.",
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil && r.Context().Err() == nil {
		ev.body, ev.bodyRead, ev.recorder.closes = body, true, false
		if !rules.Caller {
			return body, nil
		}
		return body, identifyAgain(r)
	}
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, &problem{
			code: http.StatusRequestEntityTooLarge, reason: reasonBodyTooLarge,
			message: fmt.Sprintf("The body is larger than %d bytes.", maxBody),
		}
	}
	return nil, badRequest(reasonInvalidJSONBody, "The body could not be read to its end in time.")
}

// encoded reports whether the body is compressed or otherwise coded (RFC 9110, section 8.4).
func encoded(r *http.Request) bool {
	for coding := range strings.SplitSeq(strings.Join(r.Header.Values("Content-Encoding"), ","), ",") {
		if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
			return true
		}
	}
	return false
}

func parseObject(body []byte) (*object, error) {
	var fields map[string]jsontext.Value
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return nil, badRequest(reasonInvalidJSONBody, "The body must be one JSON object.")
	}
	for name, value := range fields {
		if value.Kind() == jsontext.KindNull {
			delete(fields, name)
		}
	}
	return &object{fields: fields}, nil
}

func (o *object) wrong(field, format string, args ...any) {
	o.details = append(o.details, detail{Field: field, Message: fmt.Sprintf(format, args...)})
}

// err returns a 400 with everything that was found wrong, or nil.
func (o *object) err() error {
	if len(o.details) == 0 {
		return nil
	}
	return badRequest(reasonInvalidArgument, "The body has fields that are not valid.", o.details...)
}

// text reads a field of at most most characters, nil where it is absent.
func (o *object) text(field string, most int) *string {
	raw, present := o.fields[field]
	if !present {
		return nil
	}
	var s string
	switch {
	case json.Unmarshal(raw, &s) != nil:
		o.wrong(field, "must be a string")
	case strings.ContainsRune(s, 0):
		o.wrong(field, "must not contain the character NUL")
	case utf8.RuneCountInString(s) > most:
		o.wrong(field, "must have at most %d characters", most)
	}
	return &s
}

// requiredText reads a field that must be there and not be empty.
func (o *object) requiredText(field string, most int) string {
	before := len(o.details)
	s := o.text(field, most)
	switch {
	case s == nil:
		o.wrong(field, "is required")
		return ""
	case *s == "" && len(o.details) == before:
		o.wrong(field, "must not be empty")
	}
	return *s
}

// textNotEmpty reads a field that may be absent but not empty.
func (o *object) textNotEmpty(field string, most int) *string {
	if _, present := o.fields[field]; !present {
		return nil
	}
	s := o.requiredText(field, most)
	return &s
}

// id reads a UUID, otherwise where it is absent.
func (o *object) id(field string, otherwise uuid.UUID) uuid.UUID {
	if id := o.optionalID(field); id != nil {
		return *id
	}
	return otherwise
}

// optionalID reads a UUID, nil where it is absent.
func (o *object) optionalID(field string) *uuid.UUID {
	raw, present := o.fields[field]
	if !present {
		return nil
	}
	var s string
	id, ok := uuid.Nil, json.Unmarshal(raw, &s) == nil
	if ok {
		id, ok = parseID(s)
	}
	if !ok {
		o.wrong(field, "must be a UUID")
	}
	return &id
}

// requiredWholeNumber reads a whole number from least to most that must be there.
func (o *object) requiredWholeNumber(field string, least, most int64) int64 {
	if _, present := o.fields[field]; !present {
		o.wrong(field, "is required")
		return least
	}
	return o.wholeNumber(field, least, most, least)
}

// wholeNumber reads a field that is a whole number from least to most, otherwise where it is absent.
func (o *object) wholeNumber(field string, least, most, otherwise int64) int64 {
	raw, present := o.fields[field]
	if !present {
		return otherwise
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || n < least || n > most {
		o.wrong(field, "must be a whole number from %d to %d", least, most)
	}
	return n
}

// pathID reads {id}.
func pathID(r *http.Request) (uuid.UUID, error) { return pathUUID(r, "id") }

// pathUUID reads a part of the path that is a UUID.
func pathUUID(r *http.Request, name string) (uuid.UUID, error) {
	id, ok := parseID(chi.URLParam(r, name))
	if !ok {
		return uuid.Nil, badRequest(reasonInvalidID, "The id in the path is not a UUID.")
	}
	return id, nil
}

// queryID reads a UUID from the query, otherwise where it is absent or empty.
func queryID(r *http.Request, name string, otherwise uuid.UUID) (uuid.UUID, error) {
	values := r.URL.Query()[name]
	if len(values) == 0 || len(values) == 1 && values[0] == "" {
		return otherwise, nil
	}
	id, ok := parseID(values[0])
	if !ok || len(values) > 1 {
		return uuid.Nil, badRequest(reasonInvalidRequestParameter, "The query has parameters that are not valid.",
			detail{Field: name, Message: "must be a UUID"})
	}
	return id, nil
}

// parseID takes the one usual form of a UUID. uuid.Parse also takes braces, urn:uuid: and 32 bare digits.
func parseID(s string) (uuid.UUID, bool) {
	id, err := uuid.Parse(s)
	return id, err == nil && len(s) == len(uuid.Nil.String())
}
