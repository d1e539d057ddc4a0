package api

import (
	"errors"
	"net/http"

	"github.com/google/uuid"

	"accesskeys/internal/auth"
	"accesskeys/internal/authn"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

// accessKeyJSON is an access key on the wire, its fields in the contract's order.
type accessKeyJSON struct {
	ID         web.ID `json:"id"`
	CustomerID web.ID `json:"customer_id"`
	// AgentID is null for a customer-wide key.
	AgentID *web.ID `json:"agent_id"`
	Name    string  `json:"name"`
	Detail  string  `json:"detail"`
	// Token is set in the answer to POST alone.
	Token       string        `json:"token,omitzero"`
	TokenPrefix string        `json:"token_prefix"`
	TmExpire    web.Timestamp `json:"tm_expire"`
	TmCreate    web.Timestamp `json:"tm_create"`
	TmUpdate    web.Timestamp `json:"tm_update"`
	TmDelete    web.Timestamp `json:"tm_delete"`
	// TmLastUsed is null for never.
	TmLastUsed *web.Timestamp `json:"tm_last_used"`
	// CreatedBy is null for keys of before it was noted, and for those that nobody with a credential made.
	CreatedBy *creatorJSON `json:"created_by"`
}

// creatorJSON is who made something.
type creatorJSON struct {
	Type auth.PrincipalType `json:"type"`
	ID   web.ID             `json:"id"`
}

func wireAccessKey(k store.AccessKey) accessKeyJSON {
	var createdBy *creatorJSON
	if k.CreatedByType != nil && k.CreatedByID != nil {
		createdBy = &creatorJSON{Type: auth.PrincipalType(*k.CreatedByType), ID: web.ID(*k.CreatedByID)}
	}
	return accessKeyJSON{
		ID:          web.ID(k.ID),
		CustomerID:  web.ID(k.CustomerID),
		AgentID:     (*web.ID)(k.AgentID),
		Name:        k.Name,
		Detail:      k.Detail,
		TokenPrefix: k.TokenPrefix,
		TmExpire:    web.Timestamp(k.TmExpire),
		TmCreate:    web.Timestamp(k.TmCreate),
		TmUpdate:    web.Timestamp(k.TmUpdate),
		TmDelete:    web.Timestamp(k.TmDelete),
		TmLastUsed:  (*web.Timestamp)(k.TmLastUsed),
		CreatedBy:   createdBy,
	}
}

// wireCreatedAccessKey is the one shape that shows a token, once.
func wireCreatedAccessKey(k store.AccessKey, token auth.AccessToken) accessKeyJSON {
	wire := wireAccessKey(k)
	wire.Token = token.Reveal()
	return wire
}

// createAccessKey makes a key: for the caller's customer, or bound to an agent. Its answer is the only one that ever
// shows the token.
func (s *Server) createAccessKey(r *http.Request) (answer accessKeyJSON, err error) {
	body, err := web.DecodeObject(r)
	if err != nil {
		return answer, err
	}
	name := body.Text("name", store.MaxName)
	detail := body.Text("detail", store.MaxDetail)
	agentID := body.OptionalID("agent_id")
	expire := body.WholeNumber("expire", s.minExpire, store.MaxExpire, max(store.DefaultExpire, s.minExpire))
	if err := body.Err(); err != nil {
		return answer, err
	}
	caller := authn.PrincipalOf(r)
	of, err := s.mayBindTo(r, caller, agentID)
	if err != nil {
		return answer, err
	}
	token := auth.NewAccessToken()
	key, err := s.store.CreateAccessKey(r.Context(), caller.Caller(), store.NewAccessKey{
		CustomerID:      of.CustomerID,
		AgentID:         agentID,
		AgentPermission: of.Permission,
		Roles:           caller.Roles, // a customer-wide key has no more rights than its maker
		Name:            orEmpty(name),
		Detail:          orEmpty(detail),
		TokenHash:       token.Hash(),
		TokenPrefix:     token.Prefix(),
		Expire:          expire,
	})
	return wireCreatedAccessKey(key, token), accessKeyError(err)
}

// mayBindTo checks that the caller may make a key that acts for this agent, or for the whole customer where it is nil,
// and returns the agent, of which for the caller's customer, or the caller itself, only the customer counts. An agent may always
// bind a key to itself.
func (s *Server) mayBindTo(r *http.Request, caller auth.Principal, agentID *uuid.UUID) (store.Agent, error) {
	own := store.Agent{CustomerID: caller.CustomerID}
	if agentID != nil && caller.ActsAs(*agentID, auth.WriteAccessKeys) {
		return own, nil
	}
	if !caller.May(auth.WriteAccessKeys) {
		return own, authn.PermissionDenied()
	}
	if agentID == nil {
		return own, nil
	}
	agent, err := s.store.Agent(r.Context(), *agentID)
	if err != nil {
		return own, agentError(err)
	}
	if !caller.CanAccessCustomer(agent.CustomerID) || !caller.CanGrant(auth.Permission(agent.Permission)) {
		return own, authn.PermissionDenied()
	}
	return agent, nil
}

// listAccessKeys shows the keys of the caller's customer, or those bound to one agent, newest first.
func (s *Server) listAccessKeys(r *http.Request) (answer web.List[accessKeyJSON], err error) {
	p, err := web.DecodePage(r)
	if err != nil {
		return answer, err
	}
	agentID, err := web.QueryID(r, "agent_id", uuid.Nil)
	if err != nil {
		return answer, err
	}
	caller, ofAgent := authn.PrincipalOf(r), r.URL.Query().Get("agent_id") != ""
	if !caller.ActsAs(agentID, auth.ReadAccessKeys) {
		if !caller.May(auth.ReadAccessKeys) {
			return answer, authn.PermissionDenied()
		}
		if ofAgent {
			if _, err := s.reachAgent(r, agentID, auth.ReadAccessKeys); err != nil {
				return answer, err
			}
		}
	}
	var rows []store.AccessKey
	if !ofAgent {
		rows, err = s.store.AccessKeys(r.Context(), caller.CustomerID, store.Cursor(p.After), p.Limit())
	} else {
		rows, err = s.store.AccessKeysOfAgent(r.Context(), agentID, store.Cursor(p.After), p.Limit())
	}
	return web.Paged(rows, p, wireAccessKey), err
}

// getAccessKey shows one key.
func (s *Server) getAccessKey(r *http.Request, id uuid.UUID) (accessKeyJSON, error) {
	key, err := s.reachAccessKey(r, id, auth.ReadAccessKeys)
	return wireAccessKey(key), err
}

// updateAccessKey changes a key's name and detail. Other fields are ignored, so that a fetched key can be sent back.
func (s *Server) updateAccessKey(r *http.Request, id uuid.UUID) (answer accessKeyJSON, err error) {
	body, err := web.DecodeObject(r)
	if err != nil {
		return answer, err
	}
	change := store.AccessKeyChange{Name: body.Text("name", store.MaxName), Detail: body.Text("detail", store.MaxDetail)}
	if err := body.Err(); err != nil {
		return answer, err
	}
	key, err := s.reachAccessKey(r, id, auth.WriteAccessKeys)
	if err != nil {
		return answer, err
	}
	key, err = s.store.UpdateAccessKey(r.Context(), authn.PrincipalOf(r).Caller(), key.CustomerID, id, change)
	return wireAccessKey(key), accessKeyError(err)
}

// deleteAccessKey ends a key, for good and at once.
func (s *Server) deleteAccessKey(r *http.Request, id uuid.UUID) (answer accessKeyJSON, err error) {
	key, err := s.reachAccessKey(r, id, auth.WriteAccessKeys)
	if err != nil {
		return answer, err
	}
	key, err = s.store.DeleteAccessKey(r.Context(), authn.PrincipalOf(r).Caller(), key.CustomerID, id)
	return wireAccessKey(key), accessKeyError(err)
}

// reachAccessKey returns a live key that the caller may look at or change. One that is bound to the caller is its own;
// for any other it is checked, in the contract's order, permission, existence, tenancy.
func (s *Server) reachAccessKey(r *http.Request, id uuid.UUID, rights auth.Rights) (store.AccessKey, error) {
	caller := authn.PrincipalOf(r)
	key, err := s.store.AccessKey(r.Context(), id)
	switch {
	case err == nil && key.AgentID != nil && caller.ActsAs(*key.AgentID, rights):
		return key, nil
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return store.AccessKey{}, err
	case !caller.May(rights):
		return store.AccessKey{}, authn.PermissionDenied()
	case err != nil:
		return store.AccessKey{}, accessKeyError(err)
	case !caller.CanAccessCustomer(key.CustomerID):
		return store.AccessKey{}, authn.PermissionDenied()
	}
	return key, nil
}

func accessKeyError(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return web.NotFound(reasonAccessKeyNotFound, "access key")
	}
	return customerError(err)
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
