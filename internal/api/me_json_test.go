package api

import (
	"bytes"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"accesskeys/internal/auth"
	"accesskeys/internal/web"
)

// FuzzMeIsEncodedAlike: what me appends is what the encoder makes of it, byte for byte.
func FuzzMeIsEncodedAlike(f *testing.F) {
	for _, text := range []string{"", "plain", `"quoted\`, "<&>'", "new\nline\ttab\r\b\f\x00\x1f\x7f", "é €\u2028\u2029😀"} {
		f.Add(text, int64(len(text)), []byte("0123456789abcdef"), len(text)-2)
	}
	f.Fuzz(func(t *testing.T, text string, number int64, id []byte, roles int) {
		if !utf8.ValidString(text) {
			return // the database holds no such text
		}
		var of uuid.UUID
		copy(of[:], id)
		at := web.Timestamp(time.UnixMicro(number % 253402300800000000).UTC())
		me := principalJSON{
			ID: web.ID(of), CustomerID: web.ID(of), Type: auth.PrincipalType(text), Username: text, Name: text, Detail: text,
			Permission: auth.Permission(number), TmCreate: at, TmUpdate: at, TmDelete: at,
		}
		if number%2 == 0 {
			me.AgentID = &me.CustomerID
		}
		for range min(roles, 4) {
			me.Roles = append(me.Roles, text)
		}
		if roles == 0 {
			me.Roles = []string{}
		}
		want, err := json.Marshal(&me)
		if err != nil {
			t.Fatal(err)
		}
		if got := me.AppendJSON(nil); !bytes.Equal(got, want) {
			t.Errorf("appended: %s\nencoded:  %s", got, want)
		}
	})
}
