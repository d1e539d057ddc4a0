package api

import (
	"errors"
	"net/http"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/auth"
	"accesskeys/internal/authn"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

type agentJSON struct {
	ID         web.ID          `json:"id"`
	CustomerID web.ID          `json:"customer_id"`
	Username   string          `json:"username"`
	Name       string          `json:"name"`
	Detail     string          `json:"detail"`
	Permission auth.Permission `json:"permission"`
	TmCreate   web.Timestamp   `json:"tm_create"`
	TmUpdate   web.Timestamp   `json:"tm_update"`
	TmDelete   web.Timestamp   `json:"tm_delete"`
}

func wireAgent(a store.Agent) agentJSON {
	return agentJSON{
		ID:         web.ID(a.ID),
		CustomerID: web.ID(a.CustomerID),
		Username:   a.Username,
		Name:       a.Name,
		Detail:     a.Detail,
		Permission: auth.Permission(a.Permission),
		TmCreate:   web.Timestamp(a.TmCreate),
		TmUpdate:   web.Timestamp(a.TmUpdate),
		TmDelete:   web.Timestamp(a.TmDelete),
	}
}

// createAgent makes an agent of the caller's customer; a ProjectSuperAdmin may name another customer.
func (s *Server) createAgent(r *http.Request) (answer agentJSON, err error) {
	body, err := web.DecodeRequiredObject(r)
	if err != nil {
		return answer, err
	}
	caller := authn.PrincipalOf(r)
	customerID := body.ID("customer_id", caller.CustomerID)
	username := newUsername(body)
	password := secret.New(body.RequiredText("password", maxPassword))
	name := body.Text("name", store.MaxName)
	detail := body.Text("detail", store.MaxDetail)
	permission := auth.Permission(body.WholeNumber("permission", 0, int64(auth.PermissionAll), int64(auth.PermissionNone)))
	if err := body.Err(); err != nil {
		return answer, err
	}
	if !caller.May(auth.WriteAgents) || !caller.CanGrant(permission) {
		return answer, authn.PermissionDenied()
	}
	if err := s.reachCustomer(r, caller, customerID); err != nil {
		return answer, err
	}
	hash, err := s.hash(r, password)
	if err != nil {
		return answer, err
	}
	agent, err := s.naming(r, func() (store.Agent, error) {
		return s.store.CreateAgent(r.Context(), caller.Caller(), store.NewAgent{
			CustomerID: customerID, Username: username, PasswordHash: hash, Name: orEmpty(name), Detail: orEmpty(detail),
			Permission: int64(permission),
		})
	})
	return wireAgent(agent), agentError(err)
}

func newUsername(body *web.Object) string {
	username := body.RequiredText("username", store.MaxUsername)
	if !body.IsWrong("username") && store.CheckUsername(username) != nil {
		body.Wrong("username", "%v", store.ErrUsername)
	}
	return username
}

// listAgents shows the agents of the caller's customer, newest first; a ProjectSuperAdmin may name another customer.
func (s *Server) listAgents(r *http.Request) (answer web.List[agentJSON], err error) {
	p, err := web.DecodePage(r)
	if err != nil {
		return answer, err
	}
	caller := authn.PrincipalOf(r)
	customerID, err := web.QueryID(r, "customer_id", caller.CustomerID)
	if err != nil {
		return answer, err
	}
	if !caller.May(auth.ReadAgents) {
		return answer, authn.PermissionDenied()
	}
	if err := s.reachCustomer(r, caller, customerID); err != nil {
		return answer, err
	}
	rows, err := s.store.Agents(r.Context(), customerID, store.Cursor(p.After), p.Limit())
	return web.Paged(rows, p, wireAgent), err
}

// getAgent shows one agent.
func (s *Server) getAgent(r *http.Request, id uuid.UUID) (agentJSON, error) {
	agent, err := s.reachAgent(r, id, auth.ReadAgents)
	return wireAgent(agent), err
}

// updateAgent changes an agent's username, name and detail. Other fields are ignored, so that a fetched agent can be
// sent back.
func (s *Server) updateAgent(r *http.Request, id uuid.UUID) (answer agentJSON, err error) {
	body, err := web.DecodeObject(r)
	if err != nil {
		return answer, err
	}
	change := store.AgentChange{
		Username: body.TextNotEmpty("username", store.MaxUsername),
		Name:     body.Text("name", store.MaxName),
		Detail:   body.Text("detail", store.MaxDetail),
	}
	if err := body.Err(); err != nil {
		return answer, err
	}
	agent, err := s.requireAuthorityOver(r, id)
	if err != nil {
		return answer, err
	}
	update := func() (store.Agent, error) {
		return s.store.UpdateAgent(r.Context(), authn.PrincipalOf(r).Caller(), agent, change)
	}
	if change.Username == nil || *change.Username == agent.Username {
		agent, err = update()
	} else {
		agent, err = s.naming(r, update)
	}
	return wireAgent(agent), agentError(err)
}

// setAgentPermission changes what an agent may do. Neither what it has nor what it gets may exceed the caller's own.
func (s *Server) setAgentPermission(r *http.Request, id uuid.UUID) (answer agentJSON, err error) {
	body, err := web.DecodeRequiredObject(r)
	if err != nil {
		return answer, err
	}
	permission := auth.Permission(body.RequiredWholeNumber("permission", 0, int64(auth.PermissionAll)))
	if err := body.Err(); err != nil {
		return answer, err
	}
	if !authn.PrincipalOf(r).CanGrant(permission) {
		return answer, authn.PermissionDenied()
	}
	agent, err := s.requireAuthorityOver(r, id)
	if err != nil {
		return answer, err
	}
	agent, err = s.store.SetPermission(r.Context(), authn.PrincipalOf(r).Caller(), agent, int64(permission))
	return wireAgent(agent), agentError(err)
}

// setAgentPassword gives an agent another password, which ends its login tokens.
func (s *Server) setAgentPassword(r *http.Request, id uuid.UUID) (answer agentJSON, err error) {
	body, err := web.DecodeRequiredObject(r)
	if err != nil {
		return answer, err
	}
	password := secret.New(body.RequiredText("password", maxPassword))
	if err := body.Err(); err != nil {
		return answer, err
	}
	agent, err := s.requireAuthorityOver(r, id)
	if err != nil {
		return answer, err
	}
	return s.setPassword(r, agent, password)
}

// setOwnPassword gives the caller another password, for the old one. A key that is bound to an agent does not do: it may
// be in a configuration file, and must not lock its owner out.
func (s *Server) setOwnPassword(r *http.Request) (answer agentJSON, err error) {
	body, err := web.DecodeRequiredObject(r)
	if err != nil {
		return answer, err
	}
	old := secret.New(body.RequiredText("old_password", maxPassword))
	password := secret.New(body.RequiredText("password", maxPassword))
	if err := body.Err(); err != nil {
		return answer, err
	}
	caller := authn.PrincipalOf(r)
	if caller.Type != auth.TypeAgent {
		return answer, authn.PermissionDenied()
	}
	known, _, err := s.authenticator.Login(r.Context(), caller.Username, old, web.EventOf(r).Client)
	if errors.Is(err, auth.ErrInvalidCredential) || err == nil && known.ID != caller.ID {
		return answer, web.BadRequest(reasonWrongPassword, "The old password is incorrect.", web.Detail{Field: "old_password", Message: "is incorrect"})
	}
	if err != nil {
		return answer, err
	}
	return s.setPassword(r, known, password)
}

func (s *Server) setPassword(r *http.Request, of store.Agent, password secret.Value) (answer agentJSON, err error) {
	hash, err := s.hash(r, password)
	if err != nil {
		return answer, err
	}
	agent, err := s.store.SetPassword(r.Context(), authn.PrincipalOf(r).Caller(), of, hash)
	return wireAgent(agent), agentError(err)
}

// deleteAgent ends an agent, its tokens and the keys that are bound to it.
func (s *Server) deleteAgent(r *http.Request, id uuid.UUID) (answer agentJSON, err error) {
	agent, err := s.requireAuthorityOver(r, id)
	if err != nil {
		return answer, err
	}
	agent, err = s.store.DeleteAgent(r.Context(), authn.PrincipalOf(r).Caller(), agent)
	return wireAgent(agent), agentError(err)
}

// reachAgent returns a live agent within the caller's reach, checked in the contract's order: permission, existence,
// tenancy.
func (s *Server) reachAgent(r *http.Request, id uuid.UUID, rights auth.Rights) (store.Agent, error) {
	caller := authn.PrincipalOf(r)
	if !caller.May(rights) {
		return store.Agent{}, authn.PermissionDenied()
	}
	agent, err := s.store.Agent(r.Context(), id)
	if err != nil {
		return store.Agent{}, agentError(err)
	}
	if !caller.CanAccessCustomer(agent.CustomerID) {
		return store.Agent{}, authn.PermissionDenied()
	}
	return agent, nil
}

// requireAuthorityOver is reachAgent for changing the agent: the caller must not lack what the agent has, or its password or
// its name would be a way up.
func (s *Server) requireAuthorityOver(r *http.Request, id uuid.UUID) (store.Agent, error) {
	agent, err := s.reachAgent(r, id, auth.WriteAgents)
	if err == nil && !authn.PrincipalOf(r).CanGrant(auth.Permission(agent.Permission)) {
		err = authn.PermissionDenied()
	}
	return agent, err
}

// hash hashes a password at the caller's turn.
func (s *Server) hash(r *http.Request, password secret.Value) (secret.Value, error) {
	release, err := s.turnOf(r)
	if err != nil {
		return secret.Value{}, err
	}
	defer release()
	return s.passwords.Hash(r.Context(), password)
}

// naming makes a write that gives an agent a username. A customer whose names were taken as often as there are tries of a username
// has to wait, whatever the next one is.
//
// SECURITY: usernames are unique over all customers, so that a 409 tells of an agent of somebody else's. The try is taken beforehand:
// of requests at once each would find that there is one left.
func (s *Server) naming(r *http.Request, write func() (store.Agent, error)) (store.Agent, error) {
	undo, wait := s.tries.Take("customer "+authn.PrincipalOf(r).CustomerID.String(), time.Now())
	if wait > 0 {
		return store.Agent{}, web.TooMany(web.ByCustomer, "Too many usernames that this customer chose were taken.", wait)
	}
	agent, err := write()
	if !errors.Is(err, store.ErrUsernameTaken) {
		undo()
	}
	return agent, err
}

func agentError(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return web.NotFound(reasonAgentNotFound, "agent")
	case errors.Is(err, store.ErrUsernameTaken):
		return web.Conflict(reasonUsernameTaken, "ALREADY_EXISTS", "Another agent has this username.")
	case errors.Is(err, store.ErrUsername):
		return web.BadRequest(web.ReasonInvalidArgument, "The body has fields that are not valid.", web.Detail{Field: "username", Message: store.ErrUsername.Error()})
	case errors.Is(err, store.ErrLastAdmin):
		return web.Conflict(reasonLastAdmin, "FAILED_PRECONDITION", "A customer needs an admin, and this is its last one.")
	default:
		return customerError(err)
	}
}
