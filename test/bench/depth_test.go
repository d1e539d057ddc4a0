//go:build bench

package bench

import (
	"fmt"
	"net/url"
	"os"
	"testing"
	"time"

	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
)

// BenchmarkDepth reads pages of a customer's keys at nine tenths of the list's depth, beside its first page.
// BENCH_DEPTH_KEYS is how many keys there are; making ten million takes some minutes and gigabytes, so that without it
// there is nothing to do.
func BenchmarkDepth(b *testing.B) {
	if os.Getenv("BENCH_DEPTH_KEYS") == "" {
		b.Skip("make bench-depth sets BENCH_DEPTH_KEYS")
	}
	n := number(b, "BENCH_DEPTH_KEYS", 0)
	database := newDatabase(b)
	s := startServer(b, database)
	newest := seedList(b, database, n)
	first := requests{get("/v1.0/accesskeys", accessKey)}
	// Pages from a tenth of a percent of the list, so that not only one is read again and again.
	var deep requests
	for page := range 100 {
		depth := n/10*9 + page*n/100_000
		before := newest.Add(-time.Duration(depth) * time.Millisecond)
		deep = append(deep, get("/v1.0/accesskeys?page_token="+url.QueryEscape(before.Format(time.RFC3339Nano)), accessKey))
	}
	sameLength(b, s.addr, first[0], deep[0])
	b.Run("list", func(b *testing.B) {
		shallow, down := newSide(b, "first", s.process, 4), newSide(b, "deep", s.process, 4)
		for b.Loop() {
			shallow.turn(b, first)
			down.turn(b, deep)
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(1e6/shallow.rate(), "first-us/req")
		b.ReportMetric(1e6/down.rate(), "deep-us/req")
		atMost(fmt.Sprintf("list: a page at %d of %d keys, of the first page's time", n/10*9, n), 1.5, shallow.rate()/down.rate())
	})
}

// seedList gives accessKey's customer n keys, each a millisecond older than the one before, prints what they take, and
// returns when the newest was created.
func seedList(b *testing.B, database secret.Value, n int) (newest time.Time) {
	b.Helper()
	started := time.Now()
	ctx := b.Context()
	db := connect(b, database)
	newest = time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
	customerID := ownKey(b, openStore(b, database)).CustomerID
	const atOnce = 500_000
	for from := 0; from < n; from += atOnce {
		servertest.Must(db.Exec(ctx, `
			INSERT INTO accesskeys (id, customer_id, name, description, token_sha256, token_prefix, tm_create, tm_update, tm_expire)
			SELECT gen_random_uuid(), $1, 'key ' || i, 'For accessing reporting APIs',
			       sha256(i::text::bytea), 'vb_BenchBen', tm, tm, now() + interval '1 year'
			FROM generate_series($2::int, $3::int - 1) i, LATERAL (SELECT $4::timestamptz - i * interval '1 ms' AS tm) t`,
			customerID, from, min(from+atOnce, n), newest))(b)
		progress("%d of %d keys after %.0f s", min(from+atOnce, n), n, time.Since(started).Seconds())
	}
	// Each has been used once.
	servertest.Must(db.Exec(ctx, `INSERT INTO accesskey_uses SELECT id, tm_create FROM accesskeys`))(b)
	settle(b, db)
	rows := servertest.Must(db.Query(ctx, `
		SELECT t.relname || coalesce(' ' || i.relname, ''), pg_size_pretty(pg_relation_size(coalesce(i.oid, t.oid)))
		FROM pg_class t
		LEFT JOIN (SELECT indrelid, indexrelid FROM pg_index UNION ALL SELECT oid, NULL FROM pg_class) x ON x.indrelid = t.oid
		LEFT JOIN pg_class i ON i.oid = x.indexrelid
		WHERE t.oid IN ('accesskeys'::regclass, 'accesskey_uses'::regclass)
		ORDER BY t.relname, pg_relation_size(coalesce(i.oid, t.oid)) DESC`))(b)
	defer rows.Close()
	for rows.Next() {
		var name, size string
		servertest.OK(b, rows.Scan(&name, &size))
		fmt.Printf("%d keys: %s %s\n", n, name, size)
	}
	return newest
}

// sameLength fails unless two pages are as long as each other, give or take the digits of the names.
func sameLength(b *testing.B, addr string, first, deep []byte) {
	b.Helper()
	c := dial(b, addr)
	defer c.close()
	_, one := c.do(b, first)
	_, other := c.do(b, deep)
	if diff := len(other) - len(one); diff < -1000 || diff > 1000 {
		b.Fatalf("the first page has %d bytes, the deep one %d", len(one), len(other))
	}
}
