package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/auth"
	"accesskeys/internal/privatepg"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

// bareAnswers is the environment variable that makes this binary the bare server; it holds the answers as JSON.
const bareAnswers = "BENCH_BARE_ANSWERS"

// binary is the server under test, built by `make bench`.
const binary = "../../bin/server"

const (
	username  = "admin@bench.example"
	password  = "bench-password"
	accessKey = "vb_BenchBenchBenchBenchBenchBenchBe"
)

func TestMain(m *testing.M) {
	if answers := os.Getenv(bareAnswers); answers != "" {
		serveBare(answers)
		return
	}
	m.Run()
}

// answer is one of ours, as the bare server repeats it.
type answer struct {
	Path   string
	Header http.Header
	Body   string
}

// serveBare answers each path with its bytes until standard input ends. It reads what it is sent, as any server must.
func serveBare(encoded string) {
	var answers []answer
	if err := json.Unmarshal([]byte(encoded), &answers); err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	for _, a := range answers {
		body := []byte(a.Body)
		mux.HandleFunc(a.Path, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			header := w.Header()
			for name, values := range a.Header {
				header[name] = values
			}
			_, _ = w.Write(body)
		})
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr())
	go func() { panic(http.Serve(listener, mux)) }()
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// bench is a server on a Postgres with real durability, with something in it.
type bench struct {
	database secret.Value
	addr     string
	cmd      *exec.Cmd
	jwt      string
	userKey  string
	signed   map[auth.Algorithm]string // tokens that service accounts signed
	keyID    string
	log      *os.File
}

// keys is how many live keys the customer has.
const keys = 200

func newBench(b *testing.B) *bench {
	b.Helper()
	postgres, err := privatepg.Start(b.Context(), privatepg.Config{Getenv: os.Getenv})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = postgres.Close() })
	s := &bench{database: secret.New(postgres.URL("postgres"))}
	s.start(b)
	s.seed(b)
	return s
}

// start runs the binary and returns how long it took from there to its first answer at /readyz.
func (s *bench) start(b *testing.B) time.Duration {
	b.Helper()
	s.addr = freeAddr(b)
	cmd := exec.Command(binary, "serve")
	cmd.Env = append(os.Environ(), "DATABASE_URL="+s.database.Reveal(), "LISTEN_ADDR="+s.addr,
		"JWT_SECRET="+strings.Repeat("bench-secret", 4), "RATE_LIMIT_AUTH_RPS=0",
		"BOOTSTRAP_CUSTOMER=Bench", "BOOTSTRAP_USERNAME="+username, "BOOTSTRAP_PASSWORD="+password, "BOOTSTRAP_ACCESSKEY="+accessKey)
	// The log goes to a file, as it would: writing it is part of what a request costs.
	log, err := os.CreateTemp(b.TempDir(), "log")
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stderr = log
	started := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatalf("%v (make bench builds the binary)", err)
	}
	s.cmd, s.log = cmd, log
	b.Cleanup(s.stop)
	for !ready(s.addr) {
		if time.Since(started) > 30*time.Second {
			b.Fatal("the server is not ready after 30 s")
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(started)
}

func (s *bench) stop() {
	_ = s.cmd.Process.Signal(os.Interrupt)
	_ = s.cmd.Wait()
	_ = s.log.Close()
}

func ready(addr string) bool {
	res, err := http.Get("http://" + addr + "/readyz")
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

func freeAddr(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// seed makes the customer's keys and logs its admin in.
func (s *bench) seed(b *testing.B) {
	b.Helper()
	ctx := b.Context()
	db, err := store.Open(ctx, s.database)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	token, _ := auth.ParseAccessToken(accessKey)
	own, err := db.AccessKeyByHash(ctx, token.Hash(), store.Position{})
	if err != nil {
		b.Fatal(err)
	}
	s.keyID = own.ID.String()
	for i := range keys - 1 {
		token := auth.NewAccessToken()
		_, err := db.CreateAccessKey(ctx, store.NewAccessKey{
			CustomerID: own.CustomerID, Name: fmt.Sprintf("key %d", i), Detail: "For accessing reporting APIs",
			TokenHash: token.Hash(), TokenPrefix: token.Prefix(), Expire: 86400,
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	c := dial(b, s.addr)
	defer c.close()
	_, body := c.do(b, post("/auth/login", "", `{"username":"`+username+`","password":"`+password+`"}`))
	var login struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(body, &login); err != nil || login.Token == "" {
		b.Fatalf("login: %v: %s", err, body)
	}
	s.jwt = login.Token
	s.seedCallers(b, c)
}

// seedCallers makes a key that is bound to the admin, and for each algorithm a service account with a signed token.
func (s *bench) seedCallers(b *testing.B, c *conn) {
	b.Helper()
	answer := func(request []byte, into any) {
		b.Helper()
		_, body := c.do(b, request)
		if err := json.Unmarshal(body, into); err != nil {
			b.Fatalf("%v: %s", err, body)
		}
	}
	var me, account struct {
		ID string `json:"id"`
	}
	answer(get("/v1.0/me", s.jwt), &me)
	var key struct {
		Token string `json:"token"`
	}
	answer(post("/v1.0/accesskeys", s.jwt, `{"agent_id":"`+me.ID+`"}`), &key)
	s.userKey = key.Token
	s.signed = map[auth.Algorithm]string{}
	for _, algorithm := range auth.Algorithms() {
		answer(post("/v1.0/service_accounts", s.jwt, `{"roles":["customer_admin"]}`), &account)
		var file struct {
			AccountID  string `json:"account_id"`
			KeyID      string `json:"key_id"`
			PrivateKey string `json:"private_key"`
		}
		answer(post("/v1.0/service_accounts/"+account.ID+"/keys", s.jwt, `{"algorithm":"`+string(algorithm)+`"}`), &file)
		credentials := auth.Credentials{AccountID: file.AccountID, KeyID: file.KeyID, PrivateKey: secret.New(file.PrivateKey)}
		token, err := credentials.Sign(time.Now(), time.Hour, "")
		if err != nil {
			b.Fatal(err)
		}
		s.signed[algorithm] = token.Reveal()
	}
}

// startBare runs this binary again as the bare server.
func startBare(b *testing.B, answers []answer) (addr string) {
	b.Helper()
	encoded, err := json.Marshal(answers)
	if err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), self)
	cmd.Env = append(os.Environ(), bareAnswers+"="+string(encoded))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	if _, err := fmt.Fscanln(stdout, &addr); err != nil {
		b.Fatal(err)
	}
	return addr
}
