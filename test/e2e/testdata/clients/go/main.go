// Command client makes, lists and deletes an access key with what oapi-codegen makes of api/openapi.yaml. It prints the token of the
// deleted key.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"

	"client/api"
)

func main() {
	token, err := run(context.Background(), os.Getenv("BASE_URL"), os.Getenv("CLIENT_USERNAME"), os.Getenv("CLIENT_PASSWORD"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(token)
}

func run(ctx context.Context, base, username, password string) (string, error) {
	c, err := api.NewClientWithResponses(base)
	if err != nil {
		return "", err
	}
	login, err := c.LoginWithResponse(ctx, api.LoginRequest{Username: username, Password: password})
	if err != nil {
		return "", err
	}
	if login.JSON200 == nil {
		return "", fmt.Errorf("logging in: %s %s", login.Status(), login.Body)
	}
	asAgent := bearer(login.JSON200.Token)

	name, expire := "oapi-codegen", int64(3600)
	created, err := c.CreateAccessKeyWithResponse(ctx, api.CreateAccessKeyRequest{Name: &name, Expire: &expire}, asAgent)
	if err != nil {
		return "", err
	}
	if created.JSON200 == nil || created.JSON200.Name != name {
		return "", fmt.Errorf("making a key: %s %s", created.Status(), created.Body)
	}
	key := created.JSON200
	me, err := c.MeWithResponse(ctx, bearer(key.Token))
	if err != nil {
		return "", err
	}
	if me.JSON200 == nil || me.JSON200.Id != key.Id {
		return "", fmt.Errorf("using the key: %s %s", me.Status(), me.Body)
	}

	listed := 0
	for page := (api.ListAccessKeysParams{PageSize: new(1)}); ; {
		list, err := c.ListAccessKeysWithResponse(ctx, &page, asAgent)
		if err != nil {
			return "", err
		}
		if list.JSON200 == nil {
			return "", fmt.Errorf("listing keys: %s %s", list.Status(), list.Body)
		}
		if slices.ContainsFunc(list.JSON200.Result, func(k api.AccessKey) bool { return k.Id == key.Id && k.TmCreate.Equal(key.TmCreate) }) {
			listed++
		}
		if page.PageToken = list.JSON200.NextPageToken; page.PageToken == nil {
			break
		}
	}
	if listed != 1 {
		return "", fmt.Errorf("the lists have the key %d times", listed)
	}

	deleted, err := c.DeleteAccessKeyWithResponse(ctx, key.Id, asAgent)
	if err != nil {
		return "", err
	}
	if deleted.JSON200 == nil || !deleted.JSON200.TmDelete.Equal(deleted.JSON200.TmUpdate) {
		return "", fmt.Errorf("deleting the key: %s %s", deleted.Status(), deleted.Body)
	}
	again, err := c.DeleteAccessKeyWithResponse(ctx, key.Id, asAgent)
	if err != nil {
		return "", err
	}
	if again.JSON404 == nil || again.JSON404.Error.Reason != api.ErrorErrorReasonACCESSKEYNOTFOUND {
		return "", fmt.Errorf("deleting the key again: %s %s", again.Status(), again.Body)
	}
	return key.Token, nil
}

func bearer(token string) api.RequestEditorFn {
	return func(_ context.Context, r *http.Request) error {
		r.Header.Set("Authorization", "Bearer "+token)
		return nil
	}
}
