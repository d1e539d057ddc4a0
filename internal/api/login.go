package api

import (
	"net/http"

	"accesskeys/internal/secret"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

type loginJSON struct {
	Username string `json:"username"`
	Token    string `json:"token"`
}

// maxPassword is bounded by the body alone.
const maxPassword = web.MaxBody

// login gives an agent a token for its password (contract, section 2).
func (s *Server) login(r *http.Request) (answer loginJSON, err error) {
	body, err := web.DecodeRequiredObject(r)
	if err != nil {
		return answer, err
	}
	username := body.RequiredText("username", store.MaxUsername)
	password := secret.New(body.RequiredText("password", maxPassword))
	if err := body.Err(); err != nil {
		return answer, err
	}
	agent, token, err := s.authenticator.Login(r.Context(), username, password, web.EventOf(r).Client)
	if err != nil {
		s.metrics.observeLoginRefusal(err)
		return answer, err
	}
	return loginJSON{Username: agent.Username, Token: token.Reveal()}, nil
}
