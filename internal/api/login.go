package api

import (
	"net/http"

	"accesskeys/internal/secret"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

// maxPassword is bounded by the body alone.
const maxPassword = web.MaxBody

// login gives an agent a token for its password (contract, section 2).
func (s *Server) login(w http.ResponseWriter, r *http.Request) error {
	body, err := web.DecodeRequiredObject(w, r)
	if err != nil {
		return err
	}
	username := body.RequiredText("username", store.MaxUsername)
	password := secret.New(body.RequiredText("password", maxPassword))
	if err := body.Err(); err != nil {
		return err
	}
	agent, token, err := s.authenticator.Login(r.Context(), username, password, eventOf(r).Client)
	if err != nil {
		s.metrics.observeLoginRefusal(err)
		return err
	}
	web.WriteJSON(w, http.StatusOK, struct {
		Username string `json:"username"`
		Token    string `json:"token"`
	}{agent.Username, token.Reveal()})
	return nil
}
