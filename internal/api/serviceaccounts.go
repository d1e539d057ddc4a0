package api

import (
	"cmp"
	"errors"
	"net/http"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"accesskeys/internal/auth"
	"accesskeys/internal/authn"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
	"accesskeys/internal/web"
)

type serviceAccountJSON struct {
	ID         web.ID        `json:"id"`
	CustomerID web.ID        `json:"customer_id"`
	Name       string        `json:"name"`
	Detail     string        `json:"detail"`
	Roles      []string      `json:"roles"`
	TmCreate   web.Timestamp `json:"tm_create"`
	TmUpdate   web.Timestamp `json:"tm_update"`
	TmDelete   web.Timestamp `json:"tm_delete"`
}

func wireServiceAccount(a store.ServiceAccount) serviceAccountJSON {
	return serviceAccountJSON{
		ID:         web.ID(a.ID),
		CustomerID: web.ID(a.CustomerID),
		Name:       a.Name,
		Detail:     a.Detail,
		Roles:      a.Roles,
		TmCreate:   web.Timestamp(a.TmCreate),
		TmUpdate:   web.Timestamp(a.TmUpdate),
		TmDelete:   web.Timestamp(a.TmDelete),
	}
}

// serviceAccountKeyJSON is the public half of a key pair.
type serviceAccountKeyJSON struct {
	ID        web.ID         `json:"id"`
	AccountID web.ID         `json:"account_id"`
	Algorithm auth.Algorithm `json:"algorithm"`
	PublicKey string         `json:"public_key"`
	TmCreate  web.Timestamp  `json:"tm_create"`
	TmUpdate  web.Timestamp  `json:"tm_update"`
	TmDelete  web.Timestamp  `json:"tm_delete"`
}

func wireServiceAccountKey(k store.ServiceAccountKey) serviceAccountKeyJSON {
	return serviceAccountKeyJSON{
		ID:        web.ID(k.ID),
		AccountID: web.ID(k.AccountID),
		Algorithm: auth.Algorithm(k.Algorithm),
		PublicKey: auth.PublicKey{DER: k.PublicKey}.PEM(),
		TmCreate:  web.Timestamp(k.TmCreate),
		TmUpdate:  web.Timestamp(k.TmUpdate),
		TmDelete:  web.Timestamp(k.TmDelete),
	}
}

// credentialsJSON is the file that the owner of a new key pair gets, once. Voximplant's users know it.
type credentialsJSON struct {
	AccountID  web.ID `json:"account_id"`
	KeyID      web.ID `json:"key_id"`
	PrivateKey string `json:"private_key"`
}

// createServiceAccount makes an account of the caller's customer.
func (s *Server) createServiceAccount(r *http.Request) (answer serviceAccountJSON, err error) {
	body, err := web.DecodeObject(r)
	if err != nil {
		return answer, err
	}
	name := body.Text("name", store.MaxName)
	detail := body.Text("detail", store.MaxDetail)
	roles := rolesOf(body, "roles")
	if err := body.Err(); err != nil {
		return answer, err
	}
	caller := authn.PrincipalOf(r)
	if !caller.May(auth.WriteServiceAccounts) {
		return answer, authn.PermissionDenied()
	}
	account := store.NewServiceAccount{CustomerID: caller.CustomerID, Name: orEmpty(name), Detail: orEmpty(detail), Roles: []string{}}
	if roles != nil {
		account.Roles = *roles
	}
	created, err := s.store.CreateServiceAccount(r.Context(), caller.Caller(), account)
	return wireServiceAccount(created), serviceAccountError(err)
}

// listServiceAccounts shows the accounts of the caller's customer, newest first.
func (s *Server) listServiceAccounts(r *http.Request) (answer web.List[serviceAccountJSON], err error) {
	p, err := web.DecodePage(r)
	if err != nil {
		return answer, err
	}
	caller := authn.PrincipalOf(r)
	if !caller.May(auth.ReadServiceAccounts) {
		return answer, authn.PermissionDenied()
	}
	rows, err := s.store.ServiceAccounts(r.Context(), caller.CustomerID, store.Cursor(p.After), p.Limit())
	return web.Paged(rows, p, wireServiceAccount), err
}

// getServiceAccount shows one account.
func (s *Server) getServiceAccount(r *http.Request, id uuid.UUID) (serviceAccountJSON, error) {
	account, err := s.reachServiceAccount(r, id, auth.ReadServiceAccounts)
	return wireServiceAccount(account), err
}

// updateServiceAccount changes an account's name, detail and roles, which count from its next request on.
func (s *Server) updateServiceAccount(r *http.Request, id uuid.UUID) (answer serviceAccountJSON, err error) {
	body, err := web.DecodeObject(r)
	if err != nil {
		return answer, err
	}
	change := store.ServiceAccountChange{
		Name:   body.Text("name", store.MaxName),
		Detail: body.Text("detail", store.MaxDetail),
		Roles:  rolesOf(body, "roles"),
	}
	if err := body.Err(); err != nil {
		return answer, err
	}
	account, err := s.reachServiceAccount(r, id, auth.WriteServiceAccounts)
	if err != nil {
		return answer, err
	}
	account, err = s.store.UpdateServiceAccount(r.Context(), authn.PrincipalOf(r).Caller(), account.CustomerID, id, change)
	return wireServiceAccount(account), serviceAccountError(err)
}

// deleteServiceAccount ends an account and all its tokens.
func (s *Server) deleteServiceAccount(r *http.Request, id uuid.UUID) (answer serviceAccountJSON, err error) {
	account, err := s.reachServiceAccount(r, id, auth.WriteServiceAccounts)
	if err != nil {
		return answer, err
	}
	account, err = s.store.DeleteServiceAccount(r.Context(), authn.PrincipalOf(r).Caller(), account.CustomerID, id)
	return wireServiceAccount(account), serviceAccountError(err)
}

// createServiceAccountKey adds a key to an account. With a public_key the caller keeps the private half, and is shown the
// key; without, a pair is made and the answer is the file that holds the private half, which is stored nowhere.
func (s *Server) createServiceAccountKey(r *http.Request, id uuid.UUID) (answer any, err error) {
	body, err := web.DecodeObject(r)
	if err != nil {
		return answer, err
	}
	algorithm := algorithmOf(body, "algorithm")
	provided := publicKeyOf(body, "public_key", algorithm)
	if err := body.Err(); err != nil {
		return answer, err
	}
	account, err := s.reachServiceAccount(r, id, auth.WriteServiceAccounts)
	if err != nil {
		return answer, err
	}
	create := func(public auth.PublicKey) (store.ServiceAccountKey, error) {
		key, err := s.store.CreateServiceAccountKey(r.Context(), authn.PrincipalOf(r).Caller(), account, string(public.Algorithm), public.DER)
		return key, serviceAccountError(err)
	}
	if provided != nil {
		key, err := create(*provided)
		return wireServiceAccountKey(key), err
	}
	private, public, err := s.newKeyPair(r, account, cmp.Or(algorithm, auth.RS256))
	if err != nil {
		return answer, err
	}
	key, err := create(public)
	return credentialsJSON{AccountID: web.ID(account.ID), KeyID: web.ID(key.ID), PrivateKey: private.Reveal()}, err
}

// newKeyPair makes a pair at the caller's turn, for an account that has room for it. Whether it still has is decided where it is stored.
func (s *Server) newKeyPair(r *http.Request, account store.ServiceAccount, algorithm auth.Algorithm) (secret.Value, auth.PublicKey, error) {
	keys, err := s.store.ServiceAccountKeys(r.Context(), account.ID, store.Start(), store.MaxServiceAccountKeys)
	if err == nil && len(keys) == store.MaxServiceAccountKeys {
		err = serviceAccountError(store.ErrTooManyKeys)
	}
	if err != nil {
		return secret.Value{}, auth.PublicKey{}, err
	}
	release, err := s.turnOf(r)
	if err != nil {
		return secret.Value{}, auth.PublicKey{}, err
	}
	defer release()
	return s.keyPairs.New(r.Context(), algorithm)
}

// listServiceAccountKeys shows the public halves of an account's keys, newest first.
func (s *Server) listServiceAccountKeys(r *http.Request, id uuid.UUID) (answer web.List[serviceAccountKeyJSON], err error) {
	p, err := web.DecodePage(r)
	if err != nil {
		return answer, err
	}
	account, err := s.reachServiceAccount(r, id, auth.ReadServiceAccounts)
	if err != nil {
		return answer, err
	}
	rows, err := s.store.ServiceAccountKeys(r.Context(), account.ID, store.Cursor(p.After), p.Limit())
	return web.Paged(rows, p, wireServiceAccountKey), err
}

// deleteServiceAccountKey ends a key and the tokens that it signed.
func (s *Server) deleteServiceAccountKey(r *http.Request, id uuid.UUID) (answer serviceAccountKeyJSON, err error) {
	keyID, err := web.PathUUID(r, "key_id")
	if err != nil {
		return answer, err
	}
	account, err := s.reachServiceAccount(r, id, auth.WriteServiceAccounts)
	if err != nil {
		return answer, err
	}
	key, err := s.store.DeleteServiceAccountKey(r.Context(), authn.PrincipalOf(r).Caller(), account, keyID)
	if errors.Is(err, store.ErrNotFound) {
		return answer, web.NotFound(reasonServiceAccountKeyNotFound, "key of this service account")
	}
	return wireServiceAccountKey(key), err
}

// reachServiceAccount returns a live account within the caller's reach, checked in the contract's order: permission,
// existence, tenancy.
func (s *Server) reachServiceAccount(r *http.Request, id uuid.UUID, rights auth.Rights) (store.ServiceAccount, error) {
	caller := authn.PrincipalOf(r)
	if !caller.May(rights) {
		return store.ServiceAccount{}, authn.PermissionDenied()
	}
	account, err := s.store.ServiceAccount(r.Context(), id)
	if err != nil {
		return store.ServiceAccount{}, serviceAccountError(err)
	}
	if !caller.CanAccessCustomer(account.CustomerID) {
		return store.ServiceAccount{}, authn.PermissionDenied()
	}
	return account, nil
}

func serviceAccountError(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return web.NotFound(reasonServiceAccountNotFound, "service account")
	case errors.Is(err, store.ErrTooManyKeys):
		return web.Conflict(reasonTooManyKeys, "FAILED_PRECONDITION", "The service account has 10 keys; delete one first.")
	default:
		return customerError(err)
	}
}

// rolesOf reads a list of roles, each named once; nil where the field is absent.
func rolesOf(o *web.Object, field string) *[]string {
	raw, present := o.Raw(field)
	if !present {
		return nil
	}
	roles := []string{}
	fit := json.Unmarshal(raw, &roles) == nil
	for i, role := range roles {
		fit = fit && slices.Contains(auth.Roles(), auth.Role(role)) && !slices.Contains(roles[:i], role)
	}
	if !fit {
		o.Wrong(field, "must be a list of distinct values from %v", auth.Roles())
	}
	return &roles
}

// algorithmOf reads the name of an algorithm, "" where the field is absent.
func algorithmOf(o *web.Object, field string) auth.Algorithm {
	name := o.Text(field, store.MaxName)
	if name == nil {
		return ""
	}
	if !o.IsWrong(field) && !slices.Contains(auth.Algorithms(), auth.Algorithm(*name)) {
		o.Wrong(field, "must be one of %v", auth.Algorithms())
	}
	return auth.Algorithm(*name)
}

// publicKeyOf reads a public key in PEM, nil where the field is absent. It must be of the algorithm, where one is named.
func publicKeyOf(o *web.Object, field string, algorithm auth.Algorithm) *auth.PublicKey {
	text := o.Text(field, store.MaxDetail)
	if text == nil || o.IsWrong(field) {
		return nil
	}
	key, err := auth.ParsePublicKey(*text)
	switch {
	case err != nil:
		o.Wrong(field, "must be RSA of 2048 to 4096 bits with exponent 65537, P-256 or Ed25519, as a PEM block PUBLIC KEY")
	case algorithm != "" && algorithm != key.Algorithm:
		o.Wrong(field, "is not a key for %s", algorithm)
	}
	return &key
}
