package forwardauth

import (
	"errors"
	"mime"
	"net/http"
	"net/url"

	"accesskeys/internal/auth"
	"accesskeys/internal/authn"
	"accesskeys/internal/web"
)

// introspectionJSON is what RFC 7662, section 2.2, has of a token, and what else there is to know of its holder. Of one that is
// not active, or none of the caller's business, there is nothing to know.
type introspectionJSON struct {
	Active     bool               `json:"active"`
	TokenType  string             `json:"token_type,omitzero"`
	Subject    web.ID             `json:"sub,omitzero"`
	Username   string             `json:"username,omitzero"` // of an agent
	IssuedAt   int64              `json:"iat,omitzero"`
	ExpiresAt  int64              `json:"exp,omitzero"`
	Type       auth.PrincipalType `json:"type,omitzero"`
	CustomerID web.ID             `json:"customer_id,omitzero"`
	AgentID    web.ID             `json:"agent_id,omitzero"`
	Permission *auth.Permission   `json:"permission,omitzero"`
	Roles      []string           `json:"roles,omitzero"` // of a service account
}

// introspect tells a caller that may read access keys whether a token is good, and whose it is (RFC 7662).
func (s *server) introspect(w http.ResponseWriter, r *http.Request) error {
	token, err := introspected(r)
	if err != nil {
		return err
	}
	caller := authn.PrincipalOf(r)
	if !caller.May(auth.ReadAccessKeys) {
		return authn.PermissionDenied()
	}
	credential, err := auth.ParseCredential(token)
	var holder auth.Principal
	if err == nil {
		holder, err = s.cfg.Verifier.Verify(r.Context(), credential, web.EventOf(r).Client)
	}
	switch {
	case errors.Is(err, auth.ErrInvalidCredential), err == nil && !caller.CanAccessCustomer(holder.CustomerID):
		web.WriteJSON(w, http.StatusOK, introspectionJSON{})
		return nil
	case err != nil:
		return err
	}
	answer := introspectionJSON{
		Active:     true,
		TokenType:  "Bearer",
		Subject:    web.ID(holder.ID),
		Username:   holder.Username,
		IssuedAt:   holder.Issued.Unix(),
		ExpiresAt:  holder.Expires.Unix(),
		Type:       holder.Type,
		CustomerID: web.ID(holder.CustomerID),
		AgentID:    web.ID(holder.AgentID),
		Permission: &holder.Permission,
	}
	if holder.Type == auth.TypeServiceAccount {
		answer.Roles = holder.Roles
	}
	web.WriteJSON(w, http.StatusOK, answer)
	return nil
}

// introspected reads the token that is asked about out of a form (RFC 7662, section 2.1).
func introspected(r *http.Request) (string, error) {
	body, err := web.ReadBody(r)
	if err != nil {
		return "", err
	}
	invalid := func(message string) error {
		return web.BadRequest(web.ReasonInvalidArgument, "The request body is invalid.", web.Detail{Field: "token", Message: message})
	}
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/x-www-form-urlencoded" {
		return "", invalid("must be sent as application/x-www-form-urlencoded")
	}
	form, err := url.ParseQuery(string(body))
	switch {
	case err != nil:
		return "", invalid("the form can't be read")
	case len(form["token"]) != 1 || form.Get("token") == "":
		return "", invalid("is required exactly once")
	}
	return form.Get("token"), nil
}
