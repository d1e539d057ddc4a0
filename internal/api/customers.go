package api

import (
	"errors"
	"net/http"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

type customerJSON struct {
	ID       uuid.UUID `json:"id"`
	Name     string    `json:"name"`
	Detail   string    `json:"detail"`
	Email    string    `json:"email"`
	TmCreate timestamp `json:"tm_create"`
	TmUpdate timestamp `json:"tm_update"`
	TmDelete timestamp `json:"tm_delete"`
}

func wireCustomer(c store.Customer) customerJSON {
	return customerJSON{
		ID:       c.ID,
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
	if errors.Is(err, store.ErrNotFound) {
		return notFound(reasonCustomerNotFound, "customer")
	}
	if err != nil {
		return err
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
	if caller.MaySeeAllCustomers() {
		only = nil
	}
	rows, err := s.store.Customers(r.Context(), only, p.after, p.size+1)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, paged(rows, p, wireCustomer, customerCursor))
	return nil
}
