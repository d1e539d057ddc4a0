package postgres

import "context"

// Durability is what a commit of this database is worth.
type Durability struct {
	Standbys int  // connected, synchronous or not
	Waits    bool // a commit waits for one of them
}

// Durability asks the database, whose answer holds until its configuration is changed.
func (db *DB) Durability(ctx context.Context) (Durability, error) {
	var d Durability
	err := db.pool().QueryRow(ctx, `
		SELECT (SELECT count(*) FROM pg_stat_replication), current_setting('synchronous_standby_names') <> ''`,
	).Scan(&d.Standbys, &d.Waits)
	return d, db.Failed("reading how the database replicates", err)
}
