//go:build bench

package bench

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"accesskeys/internal/auth"
	"accesskeys/internal/changelog"
	"accesskeys/internal/secret"
	"accesskeys/internal/servertest"
	"accesskeys/internal/store"
)

const (
	// ownKeys is how many keys the customer of accessKey has.
	ownKeys = 200
	// keysEach is how many each of the other customers has.
	keysEach = 1000
)

// keyToken is the token of the loaded key i.
func keyToken(i int) string {
	return fmt.Sprintf("vb_%x", sha256.Sum256(fmt.Append(nil, "bench key ", i)))[:auth.TokenLength]
}

// seedKeys loads n keys of many customers, and returns their tokens.
func seedKeys(b *testing.B, database secret.Value, n int) []string {
	b.Helper()
	started := time.Now()
	ctx := b.Context()
	db := connect(b, database)
	rows, err := db.Query(ctx, `
		INSERT INTO customers (id, name)
		SELECT gen_random_uuid(), 'customer ' || i FROM generate_series(0, $1) i
		RETURNING id`, n/keysEach)
	servertest.OK(b, err)
	customers := servertest.Must(pgx.CollectRows(rows, pgx.RowTo[uuid.UUID]))(b)
	tokens := make([]string, n)
	expire := time.Now().AddDate(1, 0, 0)
	columns := []string{"id", "customer_id", "name", "description", "token_sha256", "token_prefix", "tm_expire"}
	servertest.Must(db.CopyFrom(ctx, pgx.Identifier{"accesskeys"}, columns, pgx.CopyFromSlice(n, func(i int) ([]any, error) {
		tokens[i] = keyToken(i)
		token, ok := auth.ParseAccessToken(tokens[i])
		if !ok {
			return nil, fmt.Errorf("%q has not the shape of a token", tokens[i])
		}
		hash := token.Hash()
		// Names of one length, so that all answers are as long as each other.
		return []any{uuid.New(), customers[i/keysEach], fmt.Sprintf("key %08d", i), "For accessing reporting APIs",
			hash[:], token.Prefix(), expire}, nil
	})))(b)
	settle(b, db)
	progress("loaded %d keys of %d customers in %.0f s", n, len(customers), time.Since(started).Seconds())
	return tokens
}

// settle leaves nothing for the background to do while we measure.
func settle(b *testing.B, db *pgx.Conn) {
	b.Helper()
	for _, sql := range []string{"VACUUM (ANALYZE)", "CHECKPOINT"} {
		servertest.Must(db.Exec(b.Context(), sql))(b)
	}
}

// warm sends each request once.
func warm(b *testing.B, addr string, all requests) {
	b.Helper()
	const conns = 16
	started := time.Now()
	next := make(chan int)
	var group sync.WaitGroup
	for range conns {
		c := dial(b, addr)
		defer c.close()
		group.Go(func() {
			for first := range next {
				for _, request := range all[first:min(first+1000, len(all))] {
					if err := c.ok(request); err != nil {
						b.Errorf("warming up: %v", err)
					}
				}
			}
		})
	}
	for first := 0; first < len(all) && !b.Failed(); first += 1000 {
		next <- first
		if first > 0 && first%100_000 == 0 {
			progress("%d of %d keys in the cache after %.0f s", first, len(all), time.Since(started).Seconds())
		}
	}
	close(next)
	group.Wait()
	if b.Failed() {
		b.FailNow()
	}
}

// seedOwnKeys gives accessKey's customer its other keys, and returns accessKey's own id.
func seedOwnKeys(b *testing.B, database secret.Value) string {
	b.Helper()
	db := openStore(b, database)
	own := ownKey(b, db)
	for i := range ownKeys - 1 {
		token := auth.NewAccessToken()
		servertest.Must(db.CreateAccessKey(b.Context(), store.Operator(), store.NewAccessKey{
			CustomerID: own.CustomerID, Name: fmt.Sprintf("key %d", i), Detail: "For accessing reporting APIs",
			TokenHash: token.Hash(), TokenPrefix: token.Prefix(), Expire: 86400,
		}))(b)
	}
	return own.ID.String()
}

func ownKey(b *testing.B, db *store.Store) store.AccessKeyCredential {
	b.Helper()
	token, _ := auth.ParseAccessToken(accessKey)
	wanted := store.Lookup{AccessKeys: []store.TokenHash{token.Hash()}}
	found := servertest.Must(db.Lookup(b.Context(), wanted, changelog.Position{}, store.HeadFirst))(b)
	own, there := found.AccessKeys[token.Hash()]
	if !there {
		b.Fatal("the benchmarks' access key is not there")
	}
	return own
}

// sessionTokens makes agents with login tokens, each of them another one.
func sessionTokens(b *testing.B, database secret.Value, agents, each int) (tokens []string) {
	b.Helper()
	db := openStore(b, database)
	customerID := ownKey(b, db).CustomerID
	sessions := servertest.Must(auth.NewSessions(jwtSecret, secret.Value{}))(b)
	for range agents {
		agent := servertest.Must(db.CreateAgent(b.Context(), store.Operator(), store.NewAgent{
			CustomerID: customerID, Username: uuid.NewString() + "@bench.example", Name: "bench",
			PasswordHash: secret.New("$argon2id$nobody logs in"), Permission: int64(auth.PermissionCustomerAdmin),
		}))(b)
		for range each {
			token := servertest.Must(sessions.Issue(agent, time.Now()))(b)
			tokens = append(tokens, token.Reveal())
		}
	}
	return tokens
}

// signedTokens makes service accounts with tokens that they signed, each of them another one.
func signedTokens(b *testing.B, addr string, algorithm auth.Algorithm, accounts, each int) (tokens []string) {
	b.Helper()
	admin := login(b, addr)
	for range accounts {
		account := ask(b, addr, post("/v1.0/service_accounts", admin, `{"name":"bench","roles":["customer_admin"]}`))
		file := ask(b, addr, post("/v1.0/service_accounts/"+account.ID+"/keys", admin, `{"algorithm":"`+string(algorithm)+`"}`))
		credentials := auth.Credentials{AccountID: file.AccountID, KeyID: file.KeyID, PrivateKey: secret.New(file.PrivateKey)}
		issued := time.Now()
		for i := range each {
			// Nothing but the time tells one from another: there is no jti.
			token := servertest.Must(credentials.Sign(issued, auth.MaxAssertionLifetime-time.Duration(i)*time.Second, ""))(b)
			tokens = append(tokens, token.Reveal())
		}
	}
	return tokens
}

// userKey makes a key that is bound to the admin.
func userKey(b *testing.B, addr string) string {
	b.Helper()
	admin := login(b, addr)
	me := ask(b, addr, get("/v1.0/me", admin))
	return ask(b, addr, post("/v1.0/accesskeys", admin, `{"agent_id":"`+me.ID+`"}`)).Token
}

// login returns a token of the admin's.
func login(b *testing.B, addr string) string {
	b.Helper()
	return ask(b, addr, loginRequest()).Token
}

func loginRequest() []byte {
	return post("/auth/login", "", `{"username":"`+username+`","password":"`+password+`"}`)
}

// reply is what answers to what is asked here have.
type reply struct {
	ID         string `json:"id"`
	Token      string `json:"token"`
	AccountID  string `json:"account_id"`
	KeyID      string `json:"key_id"`
	PrivateKey string `json:"private_key"`
}

// ask sends a request on a connection of its own and decodes the answer.
func ask(b *testing.B, addr string, request []byte) (got reply) {
	b.Helper()
	c := dial(b, addr)
	defer c.close()
	_, body := c.do(b, request)
	servertest.OK(b, json.Unmarshal(body, &got))
	return got
}

func openStore(b *testing.B, database secret.Value) *store.Store {
	b.Helper()
	db := servertest.Must(store.Open(b.Context(), database))(b)
	b.Cleanup(db.Close)
	return db
}

func connect(b *testing.B, database secret.Value) *pgx.Conn {
	b.Helper()
	db := servertest.Must(pgx.Connect(b.Context(), database.Reveal()))(b)
	b.Cleanup(func() { _ = db.Close(b.Context()) })
	return db
}
