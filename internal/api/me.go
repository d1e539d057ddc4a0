package api

import (
	"net/http"
	"strconv"

	"github.com/google/uuid"

	"accesskeys/internal/auth"
	"accesskeys/internal/authn"
	"accesskeys/internal/web"
)

type principalJSON struct {
	ID         web.ID             `json:"id"`
	CustomerID web.ID             `json:"customer_id"`
	Type       auth.PrincipalType `json:"type"`
	AgentID    *web.ID            `json:"agent_id,omitzero"` // of a key that is bound to an agent
	Username   string             `json:"username"`
	Name       string             `json:"name"`
	Detail     string             `json:"detail"`
	Permission auth.Permission    `json:"permission"`
	Roles      []string           `json:"roles,omitzero"` // of a service account
	TmCreate   web.Timestamp      `json:"tm_create"`
	TmUpdate   web.Timestamp      `json:"tm_update"`
	TmDelete   web.Timestamp      `json:"tm_delete"`
}

// AppendJSON implements web.Appender.
func (p *principalJSON) AppendJSON(text []byte) []byte {
	text = p.ID.AppendJSON(append(text, `{"id":`...))
	text = p.CustomerID.AppendJSON(append(text, `,"customer_id":`...))
	text = web.AppendString(append(text, `,"type":`...), string(p.Type))
	if p.AgentID != nil {
		text = p.AgentID.AppendJSON(append(text, `,"agent_id":`...))
	}
	text = web.AppendString(append(text, `,"username":`...), p.Username)
	text = web.AppendString(append(text, `,"name":`...), p.Name)
	text = web.AppendString(append(text, `,"detail":`...), p.Detail)
	text = strconv.AppendInt(append(text, `,"permission":`...), int64(p.Permission), 10)
	if p.Roles != nil {
		text = append(text, `,"roles":[`...)
		for i, role := range p.Roles {
			if i > 0 {
				text = append(text, ',')
			}
			text = web.AppendString(text, role)
		}
		text = append(text, ']')
	}
	text = p.TmCreate.AppendJSON(append(text, `,"tm_create":`...))
	text = p.TmUpdate.AppendJSON(append(text, `,"tm_update":`...))
	text = p.TmDelete.AppendJSON(append(text, `,"tm_delete":`...))
	return append(text, '}')
}

// me shows the caller (contract, section 5).
func (s *Server) me(r *http.Request) (principalJSON, error) {
	p := authn.PrincipalOf(r)
	me := principalJSON{
		ID:         web.ID(p.ID),
		CustomerID: web.ID(p.CustomerID),
		Type:       p.Type,
		Username:   p.Username,
		Name:       p.Name,
		Detail:     p.Detail,
		Permission: p.Permission,
		TmCreate:   web.Timestamp(p.TmCreate),
		TmUpdate:   web.Timestamp(p.TmUpdate),
		TmDelete:   web.Timestamp(p.TmDelete),
	}
	if p.Type == auth.TypeAccessKey && p.AgentID != uuid.Nil {
		id := web.ID(p.AgentID)
		me.AgentID = &id
	}
	if p.Type == auth.TypeServiceAccount {
		me.Roles = p.Roles
	}
	return me, nil
}
