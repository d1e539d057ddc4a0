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
	ID         uuid.UUID `json:"id"`
	CustomerID uuid.UUID `json:"customer_id"`
	Name       string    `json:"name"`
	Detail     string    `json:"detail"`
	// Token is set in the answer to POST alone.
	Token       string    `json:"token,omitzero"`
	TokenPrefix string    `json:"token_prefix"`
	TmExpire    timestamp `json:"tm_expire"`
	TmCreate    timestamp `json:"tm_create"`
	TmUpdate    timestamp `json:"tm_update"`
	TmDelete    timestamp `json:"tm_delete"`
}

func wireAccessKey(k store.AccessKey) accessKeyJSON {
	return accessKeyJSON{
		ID:          k.ID,
		CustomerID:  k.CustomerID,
		Name:        k.Name,
		Detail:      k.Detail,
		TokenPrefix: k.TokenPrefix,
		TmExpire:    timestamp(k.TmExpire),
		TmCreate:    timestamp(k.TmCreate),
		TmUpdate:    timestamp(k.TmUpdate),
		TmDelete:    timestamp(k.TmDelete),
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

// createAccessKey makes a key for the caller's customer. Its answer is the only one that ever shows the token.
func (s *Server) createAccessKey(w http.ResponseWriter, r *http.Request) error {
	body, err := decodeObject(w, r)
	if err != nil {
		return err
	}
	name := body.text("name", maxName)
	detail := body.text("detail", maxDetail)
	expire := body.wholeNumber("expire", s.minExpire, maxExpire, max(defaultExpire, s.minExpire))
	if err := body.err(); err != nil {
		return err
	}
	caller := principalOf(r)
	if !caller.MayManageAccessKeys() {
		return permissionDenied()
	}
	token := auth.NewAccessToken()
	key, err := s.store.CreateAccessKey(r.Context(), store.NewAccessKey{
		CustomerID:  caller.CustomerID,
		Name:        orEmpty(name),
		Detail:      orEmpty(detail),
		TokenHash:   token.Hash(),
		TokenPrefix: token.Prefix(),
		Expire:      expire,
	})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, wireCreatedAccessKey(key, token))
	return nil
}

// listAccessKeys shows the keys of the caller's customer, newest first.
func (s *Server) listAccessKeys(w http.ResponseWriter, r *http.Request) error {
	p, err := decodePage(r)
	if err != nil {
		return err
	}
	caller := principalOf(r)
	if !caller.MayManageAccessKeys() {
		return permissionDenied()
	}
	rows, err := s.store.AccessKeys(r.Context(), caller.CustomerID, p.after, p.size+1)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, paged(rows, p, wireAccessKey, accessKeyCursor))
	return nil
}

// getAccessKey shows one key.
func (s *Server) getAccessKey(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	key, err := s.reachAccessKey(r, id)
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
	key, err := s.reachAccessKey(r, id)
	if err != nil {
		return err
	}
	key, err = s.store.UpdateAccessKey(r.Context(), key.CustomerID, id, change)
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
	key, err := s.reachAccessKey(r, id)
	if err != nil {
		return err
	}
	key, err = s.store.DeleteAccessKey(r.Context(), key.CustomerID, id)
	if err != nil {
		return accessKeyError(err)
	}
	writeJSON(w, http.StatusOK, wireAccessKey(key))
	return nil
}

// reachAccessKey returns a live key that the caller may manage, checked in the contract's order: permission, existence,
// tenancy.
func (s *Server) reachAccessKey(r *http.Request, id uuid.UUID) (store.AccessKey, error) {
	caller := principalOf(r)
	if !caller.MayManageAccessKeys() {
		return store.AccessKey{}, permissionDenied()
	}
	key, err := s.store.AccessKey(r.Context(), id)
	if err != nil {
		return store.AccessKey{}, accessKeyError(err)
	}
	if !caller.MayReach(key.CustomerID) {
		return store.AccessKey{}, permissionDenied()
	}
	return key, nil
}

func accessKeyError(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return notFound(reasonAccessKeyNotFound, "access key")
	}
	return err
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
