package api

import (
	"net/http"

	"github.com/google/uuid"

	"accesskeys/internal/auth"
)

type principalJSON struct {
	ID         wireID             `json:"id"`
	CustomerID wireID             `json:"customer_id"`
	Type       auth.PrincipalType `json:"type"`
	AgentID    *wireID            `json:"agent_id,omitzero"` // of a key that is bound to an agent
	Username   string             `json:"username"`
	Name       string             `json:"name"`
	Detail     string             `json:"detail"`
	Permission auth.Permission    `json:"permission"`
	Roles      []string           `json:"roles,omitzero"` // of a service account
	TmCreate   timestamp          `json:"tm_create"`
	TmUpdate   timestamp          `json:"tm_update"`
	TmDelete   timestamp          `json:"tm_delete"`
}

// me shows the caller (contract, section 5).
func (s *Server) me(w http.ResponseWriter, r *http.Request) error {
	p := principalOf(r)
	me := principalJSON{
		ID:         wireID(p.ID),
		CustomerID: wireID(p.CustomerID),
		Type:       p.Type,
		Username:   p.Username,
		Name:       p.Name,
		Detail:     p.Detail,
		Permission: p.Permission,
		TmCreate:   timestamp(p.TmCreate),
		TmUpdate:   timestamp(p.TmUpdate),
		TmDelete:   timestamp(p.TmDelete),
	}
	if p.Type == auth.TypeAccessKey && p.AgentID != uuid.Nil {
		id := wireID(p.AgentID)
		me.AgentID = &id
	}
	if p.Type == auth.TypeServiceAccount {
		me.Roles = p.Roles
	}
	writeJSON(w, http.StatusOK, me)
	return nil
}
