package api

import (
	"errors"
	"net/http"

	"github.com/google/uuid"

	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

type customerJSON struct {
	ID       wireID    `json:"id"`
	Name     string    `json:"name"`
	Detail   string    `json:"detail"`
	Email    string    `json:"email"`
	TmCreate timestamp `json:"tm_create"`
	TmUpdate timestamp `json:"tm_update"`
	TmDelete timestamp `json:"tm_delete"`
}

func wireCustomer(c store.Customer) customerJSON {
	return customerJSON{
		ID:       wireID(c.ID),
		Name:     c.Name,
		Detail:   c.Detail,
		Email:    c.Email,
		TmCreate: timestamp(c.TmCreate),
		TmUpdate: timestamp(c.TmUpdate),
		TmDelete: timestamp(c.TmDelete),
	}
}

func customerCursor(c store.Customer) store.Cursor {
	return store.Cursor{TmCreate: c.TmCreate, ID: c.ID}
}

// customer shows the caller's customer (contract, section 5).
func (s *Server) customer(w http.ResponseWriter, r *http.Request) error {
	c, err := s.store.Customer(r.Context(), principalOf(r).CustomerID)
	if err != nil {
		return customerError(err)
	}
	writeJSON(w, http.StatusOK, wireCustomer(c))
	return nil
}

// listCustomers shows the customers that the caller may see: all, or its own (contract, section 5).
func (s *Server) listCustomers(w http.ResponseWriter, r *http.Request) error {
	p, err := decodePage(r)
	if err != nil {
		return err
	}
	caller := principalOf(r)
	only := &caller.CustomerID
	if caller.May(auth.AllCustomers) {
		only = nil
	}
	rows, err := s.store.Customers(r.Context(), only, p.after, p.size+1)
	if err != nil {
		return err
	}
	writeList(w, r, paged(rows, p, wireCustomer, customerCursor))
	return nil
}

// createCustomer makes a customer, which has nobody in it yet.
func (s *Server) createCustomer(w http.ResponseWriter, r *http.Request) error {
	body, err := decodeRequiredObject(w, r)
	if err != nil {
		return err
	}
	name := body.requiredText("name", maxName)
	detail := body.text("detail", maxDetail)
	email := body.text("email", maxName)
	if err := body.err(); err != nil {
		return err
	}
	if !principalOf(r).May(auth.AllCustomers) {
		return permissionDenied()
	}
	c, err := s.store.CreateCustomer(r.Context(), principalOf(r).Caller(), store.NewCustomer{Name: name, Detail: orEmpty(detail), Email: orEmpty(email)})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, wireCustomer(c))
	return nil
}

// getCustomer shows a customer: the caller's own, or for a ProjectSuperAdmin any.
func (s *Server) getCustomer(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
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
	writeJSON(w, http.StatusOK, wireCustomer(c))
	return nil
}

// updateCustomer changes a customer's name, detail and email.
func (s *Server) updateCustomer(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	body, err := decodeObject(w, r)
	if err != nil {
		return err
	}
	change := store.CustomerChange{
		Name:   body.textNotEmpty("name", maxName),
		Detail: body.text("detail", maxDetail),
		Email:  body.text("email", maxName),
	}
	if err := body.err(); err != nil {
		return err
	}
	if !principalOf(r).May(auth.AllCustomers) {
		return permissionDenied()
	}
	c, err := s.store.UpdateCustomer(r.Context(), principalOf(r).Caller(), id, change)
	if err != nil {
		return customerError(err)
	}
	writeJSON(w, http.StatusOK, wireCustomer(c))
	return nil
}

// deleteCustomer ends a customer and every credential of its.
func (s *Server) deleteCustomer(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
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
	writeJSON(w, http.StatusOK, wireCustomer(c))
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
		return notFound(reasonCustomerNotFound, "customer")
	}
	return err
}
