// Package mail tells people about their sign-ups: by SMTP, or in `server dev` by the log.
//
// SECURITY: what goes into a mail's header is the recipient's address and texts of our own. Nothing that a stranger
// wrote is in any mail's body.
package mail

import (
	"errors"
	"fmt"
)

var (
	// ErrUnavailable means that no mail can be sent at the moment.
	ErrUnavailable = errors.New("the mail server is unavailable")
	// ErrRefused means that the mail server will have nothing to do with this recipient, now or later.
	ErrRefused = errors.New("the mail server refuses the recipient")
)

// message is a mail without its addresses.
type message struct {
	subject string
	text    string
}

func codeMessage(code string) message {
	return message{"Your sign-up code", fmt.Sprintf(`Your code is %s

It is valid for 15 minutes and five tries.

If you did not ask for it, do nothing: without the code, nothing happens.
`, code)}
}

func accountExistsMessage() message {
	return message{"About your sign-up", `Somebody, perhaps you, asked to sign up with this address.

It has an account already, so there is no code, and nothing has changed.
If you have lost your access key, ask the operator of the service.
`}
}
