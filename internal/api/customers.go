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

type customerJSON struct {
	ID       web.ID        `json:"id"`
	Name     string        `json:"name"`
	Detail   string        `json:"detail"`
	Email    string        `json:"email"`
	TmCreate web.Timestamp `json:"tm_create"`
	TmUpdate web.Timestamp `json:"tm_update"`
	TmDelete web.Timestamp `json:"tm_delete"`
}

func wireCustomer(c store.Customer) customerJSON {
	return customerJSON{
		ID:       web.ID(c.ID),
		Name:     c.Name,
		Detail:   c.Detail,
		Email:    c.Email,
		TmCreate: web.Timestamp(c.TmCreate),
		TmUpdate: web.Timestamp(c.TmUpdate),
		TmDelete: web.Timestamp(c.TmDelete),
	}
}

// customer shows the caller's customer (contract, section 5).
func (s *Server) customer(r *http.Request) (customerJSON, error) {
	c, err := s.store.Customer(r.Context(), authn.PrincipalOf(r).CustomerID)
	return wireCustomer(c), customerError(err)
}

// listCustomers shows the customers that the caller may see: all, or its own (contract, section 5).
func (s *Server) listCustomers(r *http.Request) (answer web.List[customerJSON], err error) {
	p, err := web.DecodePage(r)
	if err != nil {
		return answer, err
	}
	caller := authn.PrincipalOf(r)
	only := &caller.CustomerID
	if caller.May(auth.AllCustomers) {
		only = nil
	}
	rows, err := s.store.Customers(r.Context(), only, store.Cursor(p.After), p.Limit())
	return web.Paged(rows, p, wireCustomer), err
}

// createCustomer makes a customer, which has nobody in it yet.
func (s *Server) createCustomer(r *http.Request) (answer customerJSON, err error) {
	body, err := web.DecodeRequiredObject(r)
	if err != nil {
		return answer, err
	}
	name := body.RequiredText("name", store.MaxName)
	detail := body.Text("detail", store.MaxDetail)
	email := body.Text("email", store.MaxName)
	if err := body.Err(); err != nil {
		return answer, err
	}
	if !authn.PrincipalOf(r).May(auth.AllCustomers) {
		return answer, authn.PermissionDenied()
	}
	c, err := s.store.CreateCustomer(r.Context(), authn.PrincipalOf(r).Caller(), store.NewCustomer{Name: name, Detail: orEmpty(detail), Email: orEmpty(email)})
	return wireCustomer(c), err
}

// getCustomer shows a customer: the caller's own, or for a ProjectSuperAdmin any.
func (s *Server) getCustomer(r *http.Request, id uuid.UUID) (answer customerJSON, err error) {
	if !authn.PrincipalOf(r).CanAccessCustomer(id) {
		return answer, authn.PermissionDenied()
	}
	c, err := s.store.Customer(r.Context(), id)
	return wireCustomer(c), customerError(err)
}

// updateCustomer changes a customer's name, detail and email.
func (s *Server) updateCustomer(r *http.Request, id uuid.UUID) (answer customerJSON, err error) {
	body, err := web.DecodeObject(r)
	if err != nil {
		return answer, err
	}
	change := store.CustomerChange{
		Name:   body.TextNotEmpty("name", store.MaxName),
		Detail: body.Text("detail", store.MaxDetail),
		Email:  body.Text("email", store.MaxName),
	}
	if err := body.Err(); err != nil {
		return answer, err
	}
	if !authn.PrincipalOf(r).May(auth.AllCustomers) {
		return answer, authn.PermissionDenied()
	}
	c, err := s.store.UpdateCustomer(r.Context(), authn.PrincipalOf(r).Caller(), id, change)
	return wireCustomer(c), customerError(err)
}

// deleteCustomer ends a customer and every credential of its.
func (s *Server) deleteCustomer(r *http.Request, id uuid.UUID) (answer customerJSON, err error) {
	if !authn.PrincipalOf(r).May(auth.AllCustomers) {
		return answer, authn.PermissionDenied()
	}
	c, err := s.store.DeleteCustomer(r.Context(), authn.PrincipalOf(r).Caller(), id)
	return wireCustomer(c), customerError(err)
}

// reachCustomer checks that a customer that a request names is within the caller's reach, and exists.
func (s *Server) reachCustomer(r *http.Request, caller auth.Principal, id uuid.UUID) error {
	if id == caller.CustomerID {
		return nil // it exists, or the caller would not
	}
	if !caller.CanAccessCustomer(id) {
		return authn.PermissionDenied()
	}
	_, err := s.store.Customer(r.Context(), id)
	return customerError(err)
}

func customerError(err error) error {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrNoCustomer) {
		return web.NotFound(reasonCustomerNotFound, "customer")
	}
	return err
}
