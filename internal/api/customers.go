package api

import (
	"errors"
	"net/http"

	"github.com/google/uuid"

	"accesskeys/internal/auth"
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
func (s *Server) customer(w http.ResponseWriter, r *http.Request) error {
	c, err := s.store.Customer(r.Context(), principalOf(r).CustomerID)
	if err != nil {
		return customerError(err)
	}
	web.WriteJSON(w, http.StatusOK, wireCustomer(c))
	return nil
}

// listCustomers shows the customers that the caller may see: all, or its own (contract, section 5).
func (s *Server) listCustomers(w http.ResponseWriter, r *http.Request) error {
	p, err := web.DecodePage(r)
	if err != nil {
		return err
	}
	caller := principalOf(r)
	only := &caller.CustomerID
	if caller.May(auth.AllCustomers) {
		only = nil
	}
	rows, err := s.store.Customers(r.Context(), only, store.Cursor(p.After), p.Limit())
	if err != nil {
		return err
	}
	web.WriteList(w, r, web.Paged(rows, p, wireCustomer))
	return nil
}

// createCustomer makes a customer, which has nobody in it yet.
func (s *Server) createCustomer(w http.ResponseWriter, r *http.Request) error {
	body, err := web.DecodeRequiredObject(w, r)
	if err != nil {
		return err
	}
	name := body.RequiredText("name", store.MaxName)
	detail := body.Text("detail", store.MaxDetail)
	email := body.Text("email", store.MaxName)
	if err := body.Err(); err != nil {
		return err
	}
	if !principalOf(r).May(auth.AllCustomers) {
		return permissionDenied()
	}
	c, err := s.store.CreateCustomer(r.Context(), principalOf(r).Caller(), store.NewCustomer{Name: name, Detail: orEmpty(detail), Email: orEmpty(email)})
	if err != nil {
		return err
	}
	web.WriteJSON(w, http.StatusOK, wireCustomer(c))
	return nil
}

// getCustomer shows a customer: the caller's own, or for a ProjectSuperAdmin any.
func (s *Server) getCustomer(w http.ResponseWriter, r *http.Request) error {
	id, err := web.PathID(r)
	if err != nil {
		return err
	}
	if !principalOf(r).MayReach(id) {
		return permissionDenied()
	}
	c, err := s.store.Customer(r.Context(), id)
	if err != nil {
		return customerError(err)
	}
	web.WriteJSON(w, http.StatusOK, wireCustomer(c))
	return nil
}

// updateCustomer changes a customer's name, detail and email.
func (s *Server) updateCustomer(w http.ResponseWriter, r *http.Request) error {
	id, err := web.PathID(r)
	if err != nil {
		return err
	}
	body, err := web.DecodeObject(w, r)
	if err != nil {
		return err
	}
	change := store.CustomerChange{
		Name:   body.TextNotEmpty("name", store.MaxName),
		Detail: body.Text("detail", store.MaxDetail),
		Email:  body.Text("email", store.MaxName),
	}
	if err := body.Err(); err != nil {
		return err
	}
	if !principalOf(r).May(auth.AllCustomers) {
		return permissionDenied()
	}
	c, err := s.store.UpdateCustomer(r.Context(), principalOf(r).Caller(), id, change)
	if err != nil {
		return customerError(err)
	}
	web.WriteJSON(w, http.StatusOK, wireCustomer(c))
	return nil
}

// deleteCustomer ends a customer and every credential of its.
func (s *Server) deleteCustomer(w http.ResponseWriter, r *http.Request) error {
	id, err := web.PathID(r)
	if err != nil {
		return err
	}
	if !principalOf(r).May(auth.AllCustomers) {
		return permissionDenied()
	}
	c, err := s.store.DeleteCustomer(r.Context(), principalOf(r).Caller(), id)
	if err != nil {
		return customerError(err)
	}
	web.WriteJSON(w, http.StatusOK, wireCustomer(c))
	return nil
}

// reachCustomer checks that a customer that a request names is within the caller's reach, and exists.
func (s *Server) reachCustomer(r *http.Request, caller auth.Principal, id uuid.UUID) error {
	if id == caller.CustomerID {
		return nil // it exists, or the caller would not
	}
	if !caller.MayReach(id) {
		return permissionDenied()
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
