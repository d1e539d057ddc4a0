package api

import (
	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// The functions here render what the command line prints, in the shapes of the API.

type agentJSON struct {
	ID         uuid.UUID       `json:"id"`
	CustomerID uuid.UUID       `json:"customer_id"`
	Username   string          `json:"username"`
	Name       string          `json:"name"`
	Detail     string          `json:"detail"`
	Permission auth.Permission `json:"permission"`
	TmCreate   timestamp       `json:"tm_create"`
	TmUpdate   timestamp       `json:"tm_update"`
	TmDelete   timestamp       `json:"tm_delete"`
}

// RenderCustomer returns a customer as JSON.
func RenderCustomer(c store.Customer) ([]byte, error) { return json.Marshal(wireCustomer(c)) }

// RenderAgent returns an agent as JSON.
func RenderAgent(a store.Agent) ([]byte, error) {
	return json.Marshal(agentJSON{
		ID:         a.ID,
		CustomerID: a.CustomerID,
		Username:   a.Username,
		Name:       a.Name,
		Detail:     a.Detail,
		Permission: auth.Permission(a.Permission),
		TmCreate:   timestamp(a.TmCreate),
		TmUpdate:   timestamp(a.TmUpdate),
		TmDelete:   timestamp(a.TmDelete),
	})
}

// RenderCreatedAccessKey returns a new access key as JSON, with its token.
func RenderCreatedAccessKey(k store.AccessKey, token auth.AccessToken) ([]byte, error) {
	return json.Marshal(wireCreatedAccessKey(k, token))
}
