package web

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

// MaxBody is the most that a body may have, in bytes.
const MaxBody = 64 << 10

// Object is a request's body: its fields by their exact names, without those that are null. Its methods read one field
// each and gather what is wrong with it; Err tells whether anything was.
type Object struct {
	fields  map[string]jsontext.Value
	details []Detail
}

// DecodeObject reads a body that must be one JSON object in UTF-8, with no name twice and nothing after it; an empty
// body counts as {}. The Content-Type is not looked at: VoIPBIN does not, and no cookie authenticates here.
func DecodeObject(r *http.Request) (*Object, error) {
	body, err := ReadBody(r)
	if err != nil {
		return nil, err
	}
	if len(bytes.Trim(body, " \t\r\n")) == 0 { // the space of JSON, not all of Unicode's
		return &Object{}, nil
	}
	return parseObject(body)
}

// DecodeRequiredObject is DecodeObject for routes that need a body: an empty one is no JSON.
func DecodeRequiredObject(r *http.Request) (*Object, error) {
	body, err := ReadBody(r)
	if err != nil {
		return nil, err
	}
	return parseObject(body)
}

// ReadBody reads the body to its end. SECURITY: a client can take its time for that. So the credential is checked again: who holds a
// request back while the credential is revoked, has nothing of it.
func ReadBody(r *http.Request) ([]byte, error) {
	ev := EventOf(r)
	if ev.bodyRead {
		return ev.body, nil
	}
	if encoded(r) {
		ev.recorder.Header().Set("Accept-Encoding", "identity")
		return nil, &Error{
			Code: http.StatusUnsupportedMediaType, Reason: ReasonUnsupportedMediaType, Message: "The body must be sent without a Content-Encoding.",
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(&ev.recorder, r.Body, MaxBody))
	if err == nil && r.Context().Err() == nil {
		ev.body, ev.bodyRead, ev.recorder.closes = body, true, false
		return body, ev.Caller.Recheck(r)
	}
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, &Error{
			Code: http.StatusRequestEntityTooLarge, Reason: ReasonBodyTooLarge,
			Message: fmt.Sprintf("The body is larger than %d bytes.", MaxBody),
		}
	}
	return nil, BadRequest(ReasonInvalidJSONBody, "The body could not be read to its end in time.")
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

func parseObject(body []byte) (*Object, error) {
	var fields map[string]jsontext.Value
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return nil, BadRequest(ReasonInvalidJSONBody, "The body must be one JSON object.")
	}
	for name, value := range fields {
		if value.Kind() == jsontext.KindNull {
			delete(fields, name)
		}
	}
	return &Object{fields: fields}, nil
}

// Raw is a field as it was sent, and whether it is there.
func (o *Object) Raw(field string) (value jsontext.Value, present bool) {
	value, present = o.fields[field]
	return value, present
}

// Wrong notes what is wrong with a field.
func (o *Object) Wrong(field, format string, args ...any) {
	o.details = append(o.details, Detail{Field: field, Message: fmt.Sprintf(format, args...)})
}

// IsWrong reports whether something was found wrong with a field.
func (o *Object) IsWrong(field string) bool {
	return slices.ContainsFunc(o.details, func(d Detail) bool { return d.Field == field })
}

// Err returns a 400 with everything that was found wrong, or nil.
func (o *Object) Err() error {
	if len(o.details) == 0 {
		return nil
	}
	return BadRequest(ReasonInvalidArgument, "The body has fields that are not valid.", o.details...)
}

// Text reads a field of at most most characters, nil where it is absent.
func (o *Object) Text(field string, most int) *string {
	raw, present := o.fields[field]
	if !present {
		return nil
	}
	var s string
	switch {
	case json.Unmarshal(raw, &s) != nil:
		o.Wrong(field, "must be a string")
	case strings.ContainsRune(s, 0):
		o.Wrong(field, "must not contain the character NUL")
	case utf8.RuneCountInString(s) > most:
		o.Wrong(field, "must have at most %d characters", most)
	}
	return &s
}

// RequiredText reads a field that must be there and not be empty.
func (o *Object) RequiredText(field string, most int) string {
	before := len(o.details)
	s := o.Text(field, most)
	switch {
	case s == nil:
		o.Wrong(field, "is required")
		return ""
	case *s == "" && len(o.details) == before:
		o.Wrong(field, "must not be empty")
	}
	return *s
}

// TextNotEmpty reads a field that may be absent but not empty.
func (o *Object) TextNotEmpty(field string, most int) *string {
	if _, present := o.fields[field]; !present {
		return nil
	}
	s := o.RequiredText(field, most)
	return &s
}

// ID reads a UUID, otherwise where it is absent.
func (o *Object) ID(field string, otherwise uuid.UUID) uuid.UUID {
	if id := o.OptionalID(field); id != nil {
		return *id
	}
	return otherwise
}

// OptionalID reads a UUID, nil where it is absent.
func (o *Object) OptionalID(field string) *uuid.UUID {
	raw, present := o.fields[field]
	if !present {
		return nil
	}
	var s string
	id, ok := uuid.Nil, json.Unmarshal(raw, &s) == nil
	if ok {
		id, ok = ParseID(s)
	}
	if !ok {
		o.Wrong(field, "must be a UUID")
	}
	return &id
}

// RequiredWholeNumber reads a whole number from least to most that must be there.
func (o *Object) RequiredWholeNumber(field string, least, most int64) int64 {
	if _, present := o.fields[field]; !present {
		o.Wrong(field, "is required")
		return least
	}
	return o.WholeNumber(field, least, most, least)
}

// WholeNumber reads a field that is a whole number from least to most, otherwise where it is absent.
func (o *Object) WholeNumber(field string, least, most, otherwise int64) int64 {
	raw, present := o.fields[field]
	if !present {
		return otherwise
	}
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || n < least || n > most {
		o.Wrong(field, "must be a whole number from %d to %d", least, most)
	}
	return n
}

// PathID reads {id}.
func PathID(r *http.Request) (uuid.UUID, error) { return PathUUID(r, "id") }

// PathUUID reads a part of the path that is a UUID.
func PathUUID(r *http.Request, name string) (uuid.UUID, error) {
	id, ok := ParseID(chi.URLParam(r, name))
	if !ok {
		return uuid.Nil, BadRequest(ReasonInvalidID, "The id in the path is not a UUID.")
	}
	return id, nil
}

// QueryID reads a UUID from the query, otherwise where it is absent or empty.
func QueryID(r *http.Request, name string, otherwise uuid.UUID) (uuid.UUID, error) {
	values := r.URL.Query()[name]
	if len(values) == 0 || len(values) == 1 && values[0] == "" {
		return otherwise, nil
	}
	id, ok := ParseID(values[0])
	if !ok || len(values) > 1 {
		return uuid.Nil, BadRequest(ReasonInvalidRequestParameter, "The query has parameters that are not valid.",
			Detail{Field: name, Message: "must be a UUID"})
	}
	return id, nil
}

// ParseID takes the one usual form of a UUID. uuid.Parse also takes braces, urn:uuid: and 32 bare digits.
func ParseID(s string) (uuid.UUID, bool) {
	id, err := uuid.Parse(s)
	return id, err == nil && len(s) == len(uuid.Nil.String())
}
