package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/mail"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

// Mailer tells the owner of an address about a sign-up with it. It returns mail.ErrUnavailable and mail.ErrRefused.
type Mailer interface {
	SendCode(ctx context.Context, to string, code secret.Value) error
	// SendAccountExists is for an address that a customer has already.
	SendAccountExists(ctx context.Context, to string) error
}

type tempTokenJSON struct {
	TempToken string `json:"temp_token"`
}

type signupJSON struct {
	CustomerID web.ID        `json:"customer_id"`
	AccessKey  accessKeyJSON `json:"accesskey"`
}

const (
	maxSignupSecret = 64 // characters, more than either has
	// dropTimeout bounds taking a sign-up back. It comes on top of requestTimeout.
	dropTimeout = 500 * time.Millisecond
)

// signup begins a sign-up: its code goes out by mail.
//
// SECURITY: nothing in the answer, nor its time, depends on whether a customer has the address: one mail is sent either
// way, and what is asked of the database is the same.
func (s *Server) signup(r *http.Request) (answer tempTokenJSON, err error) {
	body, err := web.DecodeRequiredObject(r)
	if err != nil {
		return answer, err
	}
	email := emailOf(body, "email")
	mustBeTrue(body, "accepted_tos")
	name := body.TextNotEmpty("name", store.MaxName)
	detail := body.Text("detail", store.MaxDetail)
	if err := body.Err(); err != nil {
		return answer, err
	}
	if name == nil {
		name = &email
	}
	secrets := auth.NewSignup()
	signup, err := s.store.CreateSignup(r.Context(), store.NewSignup{
		TempTokenHash: secrets.TempTokenHash(), CodeHash: secrets.CodeHash(), Email: email, Name: *name, Detail: orEmpty(detail),
	})
	if err != nil {
		return answer, err
	}
	if signup.Stored { // else the address had its mails
		if err := s.mailSignup(r.Context(), signup, email, secrets.Code); err != nil {
			return answer, err
		}
	}
	return tempTokenJSON{TempToken: secrets.TempToken.Reveal()}, nil
}

// mailSignup sends the mail of a sign-up, and takes the sign-up back where that fails, so that it does not count.
//
// SECURITY: neither ends with the client's connection: by hanging up just after the mail went out, a stranger could have
// any number of them sent.
func (s *Server) mailSignup(ctx context.Context, signup store.Signup, email string, code secret.Value) error {
	detached := context.WithoutCancel(ctx)
	sending := detached
	if deadline, bounded := ctx.Deadline(); bounded {
		var cancel context.CancelFunc
		sending, cancel = context.WithDeadline(detached, deadline)
		defer cancel()
	}
	var err error
	if signup.AddressTaken {
		err = s.mailer.SendAccountExists(sending, email)
	} else {
		err = s.mailer.SendCode(sending, email, code)
	}
	if err == nil || errors.Is(err, mail.ErrRefused) {
		return nil // a mail server may as well have taken it and found out later
	}
	dropping, cancel := context.WithTimeout(detached, dropTimeout)
	defer cancel()
	return errors.Join(err, s.store.DropSignup(dropping, signup.ID))
}

// completeSignup makes a customer, and its first key, of a sign-up whose code came back.
func (s *Server) completeSignup(r *http.Request) (answer signupJSON, err error) {
	body, err := web.DecodeRequiredObject(r)
	if err != nil {
		return answer, err
	}
	secrets := auth.Signup{
		TempToken: secret.New(body.RequiredText("temp_token", maxSignupSecret)),
		Code:      secret.New(body.RequiredText("code", maxSignupSecret)),
	}
	if err := body.Err(); err != nil {
		return answer, err
	}
	token := auth.NewAccessToken()
	customer, key, err := s.store.CompleteSignup(r.Context(), secrets.TempTokenHash(), secrets.CodeHash(), store.NewAccessKey{
		Name: "Default", TokenHash: token.Hash(), TokenPrefix: token.Prefix(), Expire: max(store.DefaultExpire, s.minExpire),
	})
	switch {
	case errors.Is(err, store.ErrNoSignup):
		return answer, web.BadRequest(reasonInvalidSignup, "The temp token or the code is not valid, or no longer.")
	case err != nil:
		return answer, err
	}
	return signupJSON{CustomerID: web.ID(customer.ID), AccessKey: wireCreatedAccessKey(key, token)}, nil
}

// emailOf reads an address that must be there.
func emailOf(o *web.Object, field string) string {
	s := o.RequiredText(field, store.MaxName)
	if !o.IsWrong(field) && !mail.IsAddress(s) {
		o.Wrong(field, "must be an email address such as ada@example.com")
	}
	return s
}

// mustBeTrue checks a field that can only be true.
func mustBeTrue(o *web.Object, field string) {
	if raw, _ := o.Raw(field); string(raw) != "true" {
		o.Wrong(field, "must be true")
	}
}
