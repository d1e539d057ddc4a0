package api

import (
	"net/http"

	"accesskeys/internal/secret"
)

const (
	maxUsername = 255 // characters
	maxPassword = maxBody
)

// login gives an agent a token for its password (contract, section 2).
func (s *Server) login(w http.ResponseWriter, r *http.Request) error {
	body, err := decodeRequiredObject(w, r)
	if err != nil {
		return err
	}
	username := body.requiredText("username", maxUsername)
	password := secret.New(body.requiredText("password", maxPassword))
	if err := body.err(); err != nil {
		return err
	}
	agent, token, err := s.authenticator.Login(r.Context(), username, password, eventOf(r).client)
	if err != nil {
		s.metrics.observeLoginRefusal(err)
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Username string `json:"username"`
		Token    string `json:"token"`
	}{agent.Username, token.Reveal()})
	return nil
}
