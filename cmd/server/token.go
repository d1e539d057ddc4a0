package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/text/transform"

	"accesskeys/internal/auth"
	"accesskeys/internal/config"
	"accesskeys/internal/secret"
)

// signToken signs a token with the file that a service account's owner was given. It needs no server and no setting.
func signToken(_ context.Context, inv invocation) error {
	flags, given := inv.flagSet("token sign")
	path := flags.String("credentials", "", "the file with account_id, key_id and private_key (required)")
	expire := flags.Int64("expire", int64(auth.MaxAssertionLifetime/time.Second), "seconds that the token is valid for, at most 3600")
	cfg, err := inv.parseSome(flags, given, []string{"AUDIENCE"})
	if err != nil {
		return err
	}
	if *path == "" {
		return config.Usagef("--credentials is missing: it takes the file that a new key pair was answered with")
	}
	if *expire < 1 || *expire > int64(auth.MaxAssertionLifetime/time.Second) {
		return config.Usagef("--expire: it takes a whole number of seconds from 1 to %d", int64(auth.MaxAssertionLifetime/time.Second))
	}
	credentials, err := readCredentials(*path)
	if err != nil {
		return config.Usagef("--credentials: %w", err)
	}
	token, err := credentials.Sign(time.Now(), time.Duration(*expire)*time.Second, cfg.Audience)
	if err != nil {
		return config.Usagef("--credentials: %w", err)
	}
	_, err = fmt.Fprintf(inv.stdout, "Authorization: Bearer %s\n", token.Reveal())
	return err
}

func readCredentials(path string) (auth.Credentials, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		// Without the path: a user who gives the file's content instead of its name would find it in a log.
		if failed, ok := errors.AsType[*fs.PathError](err); ok {
			err = failed.Err
		}
		return auth.Credentials{}, fmt.Errorf("the file can't be read: %w", err)
	}
	if plain, _, err := transform.Bytes(unmarked(), content); err == nil { // else it is no JSON
		content = plain
	}
	var file struct {
		AccountID  string `json:"account_id"`
		KeyID      string `json:"key_id"`
		PrivateKey string `json:"private_key"`
	}
	// The error could quote the private key.
	if json.Unmarshal(content, &file) != nil || file.AccountID == "" || file.KeyID == "" || file.PrivateKey == "" {
		return auth.Credentials{}, fmt.Errorf("%s is not a JSON object with account_id, key_id and private_key", path)
	}
	return auth.Credentials{AccountID: file.AccountID, KeyID: file.KeyID, PrivateKey: secret.New(file.PrivateKey)}, nil
}
