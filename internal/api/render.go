package api

import (
	"github.com/go-json-experiment/json"

	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// The functions here render what the command line prints, in the shapes of the API.

// RenderCustomer returns a customer as JSON.
func RenderCustomer(c store.Customer) ([]byte, error) { return json.Marshal(wireCustomer(c)) }

// RenderAgent returns an agent as JSON.
func RenderAgent(a store.Agent) ([]byte, error) { return json.Marshal(wireAgent(a)) }

// RenderCreatedAccessKey returns a new access key as JSON, with its token.
func RenderCreatedAccessKey(k store.AccessKey, token auth.AccessToken) ([]byte, error) {
	return json.Marshal(wireCreatedAccessKey(k, token))
}
