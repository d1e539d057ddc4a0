package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"accesskeys/internal/secret"
)

// CreateDatabase makes a database on the server at url, where it does not exist yet.
func CreateDatabase(ctx context.Context, url secret.Value, name string) error {
	conn, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	var exists bool
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, name).Scan(&exists)
	if err == nil && !exists {
		_, err = conn.Exec(ctx, `CREATE DATABASE `+pgx.Identifier{name}.Sanitize())
	}
	return translate("creating the database", err)
}
