package api

import (
	"errors"
	"net/http"

	"github.com/google/uuid"

	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// An access key's expire in seconds (contract, section 4). A year has 365 days here.
const (
	defaultExpire = 365 * 86400
	maxExpire     = 100 * defaultExpire
)

// accessKeyJSON is an access key on the wire, its fields in the contract's order.
type accessKeyJSON struct {
	ID         wireID `json:"id"`
	CustomerID wireID `json:"customer_id"`
	// AgentID is null for a customer-wide key.
	AgentID *wireID `json:"agent_id"`
	Name    string  `json:"name"`
	Detail  string  `json:"detail"`
	// Token is set in the answer to POST alone.
	Token       string    `json:"token,omitzero"`
	TokenPrefix string    `json:"token_prefix"`
	TmExpire    timestamp `json:"tm_expire"`
	TmCreate    timestamp `json:"tm_create"`
	TmUpdate    timestamp `json:"tm_update"`
	TmDelete    timestamp `json:"tm_delete"`
	// TmLastUsed is null for never.
	TmLastUsed *timestamp `json:"tm_last_used"`
	// CreatedBy is null for keys of before it was noted, and for those that nobody with a credential made.
	CreatedBy *creatorJSON `json:"created_by"`
}

// creatorJSON is who made something.
type creatorJSON struct {
	Type auth.PrincipalType `json:"type"`
	ID   wireID             `json:"id"`
}

func wireAccessKey(k store.AccessKey) accessKeyJSON {
	var createdBy *creatorJSON
	if k.CreatedByType != nil && k.CreatedByID != nil {
		createdBy = &creatorJSON{Type: auth.PrincipalType(*k.CreatedByType), ID: wireID(*k.CreatedByID)}
	}
	return accessKeyJSON{
		ID:          wireID(k.ID),
		CustomerID:  wireID(k.CustomerID),
		AgentID:     (*wireID)(k.AgentID),
		Name:        k.Name,
		Detail:      k.Detail,
		TokenPrefix: k.TokenPrefix,
		TmExpire:    timestamp(k.TmExpire),
		TmCreate:    timestamp(k.TmCreate),
		TmUpdate:    timestamp(k.TmUpdate),
		TmDelete:    timestamp(k.TmDelete),
		TmLastUsed:  (*timestamp)(k.TmLastUsed),
		CreatedBy:   createdBy,
	}
}

// wireCreatedAccessKey is the one shape that shows a token, once.
func wireCreatedAccessKey(k store.AccessKey, token auth.AccessToken) accessKeyJSON {
	wire := wireAccessKey(k)
	wire.Token = token.Reveal()
	return wire
}

func accessKeyCursor(k store.AccessKey) store.Cursor {
	return store.Cursor{TmCreate: k.TmCreate, ID: k.ID}
}

// createAccessKey makes a key: for the caller's customer, or bound to an agent. Its answer is the only one that ever
// shows the token.
func (s *Server) createAccessKey(w http.ResponseWriter, r *http.Request) error {
	body, err := decodeObject(w, r)
	if err != nil {
		return err
	}
	name := body.text("name", maxName)
	detail := body.text("detail", maxDetail)
	agentID := body.optionalID("agent_id")
	expire := body.wholeNumber("expire", s.minExpire, maxExpire, max(defaultExpire, s.minExpire))
	if err := body.err(); err != nil {
		return err
	}
	caller := principalOf(r)
	of, err := s.mayBindTo(r, caller, agentID)
	if err != nil {
		return err
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
	if err != nil {
		return accessKeyError(err)
	}
	writeJSON(w, http.StatusOK, wireCreatedAccessKey(key, token))
	return nil
}

// mayBindTo checks that the caller may make a key that acts for this agent, or for the whole customer where it is nil,
// and returns the agent, of which for the caller's customer, or the caller itself, only the customer counts. An agent may always
// bind a key to itself.
func (s *Server) mayBindTo(r *http.Request, caller auth.Principal, agentID *uuid.UUID) (store.Agent, error) {
	own := store.Agent{CustomerID: caller.CustomerID}
	if agentID != nil && caller.Acts(*agentID, auth.WriteAccessKeys) {
		return own, nil
	}
	if !caller.May(auth.WriteAccessKeys) {
		return own, permissionDenied()
	}
	if agentID == nil {
		return own, nil
	}
	agent, err := s.store.Agent(r.Context(), *agentID)
	if err != nil {
		return own, agentError(err)
	}
	if !caller.MayReach(agent.CustomerID) || !caller.MayGive(auth.Permission(agent.Permission)) {
		return own, permissionDenied()
	}
	return agent, nil
}

// listAccessKeys shows the keys of the caller's customer, or those bound to one agent, newest first.
func (s *Server) listAccessKeys(w http.ResponseWriter, r *http.Request) error {
	p, err := decodePage(r)
	if err != nil {
		return err
	}
	agentID, err := queryID(r, "agent_id", uuid.Nil)
	if err != nil {
		return err
	}
	caller, ofAgent := principalOf(r), r.URL.Query().Get("agent_id") != ""
	if !caller.Acts(agentID, auth.ReadAccessKeys) {
		if !caller.May(auth.ReadAccessKeys) {
			return permissionDenied()
		}
		if ofAgent {
			if _, err := s.reachAgent(r, agentID, auth.ReadAccessKeys); err != nil {
				return err
			}
		}
	}
	var rows []store.AccessKey
	if !ofAgent {
		rows, err = s.store.AccessKeys(r.Context(), caller.CustomerID, p.after, p.size+1)
	} else {
		rows, err = s.store.AccessKeysOfAgent(r.Context(), agentID, p.after, p.size+1)
	}
	if err != nil {
		return err
	}
	writeList(w, r, paged(rows, p, wireAccessKey, accessKeyCursor))
	return nil
}

// getAccessKey shows one key.
func (s *Server) getAccessKey(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	key, err := s.reachAccessKey(r, id, auth.ReadAccessKeys)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, wireAccessKey(key))
	return nil
}

// updateAccessKey changes a key's name and detail. Other fields are ignored, so that a fetched key can be sent back.
func (s *Server) updateAccessKey(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	body, err := decodeObject(w, r)
	if err != nil {
		return err
	}
	change := store.AccessKeyChange{Name: body.text("name", maxName), Detail: body.text("detail", maxDetail)}
	if err := body.err(); err != nil {
		return err
	}
	key, err := s.reachAccessKey(r, id, auth.WriteAccessKeys)
	if err != nil {
		return err
	}
	key, err = s.store.UpdateAccessKey(r.Context(), principalOf(r).Caller(), key.CustomerID, id, change)
	if err != nil {
		return accessKeyError(err)
	}
	writeJSON(w, http.StatusOK, wireAccessKey(key))
	return nil
}

// deleteAccessKey ends a key, for good and at once.
func (s *Server) deleteAccessKey(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	key, err := s.reachAccessKey(r, id, auth.WriteAccessKeys)
	if err != nil {
		return err
	}
	key, err = s.store.DeleteAccessKey(r.Context(), principalOf(r).Caller(), key.CustomerID, id)
	if err != nil {
		return accessKeyError(err)
	}
	writeJSON(w, http.StatusOK, wireAccessKey(key))
	return nil
}

// reachAccessKey returns a live key that the caller may look at or change. One that is bound to the caller is its own;
// for any other it is checked, in the contract's order, permission, existence, tenancy.
func (s *Server) reachAccessKey(r *http.Request, id uuid.UUID, rights auth.Rights) (store.AccessKey, error) {
	caller := principalOf(r)
	key, err := s.store.AccessKey(r.Context(), id)
	switch {
	case err == nil && key.AgentID != nil && caller.Acts(*key.AgentID, rights):
		return key, nil
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return store.AccessKey{}, err
	case !caller.May(rights):
		return store.AccessKey{}, permissionDenied()
	case err != nil:
		return store.AccessKey{}, accessKeyError(err)
	case !caller.MayReach(key.CustomerID):
		return store.AccessKey{}, permissionDenied()
	}
	return key, nil
}

func accessKeyError(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return notFound(reasonAccessKeyNotFound, "access key")
	}
	return customerError(err)
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
