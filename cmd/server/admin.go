package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"golang.org/x/term"
	"golang.org/x/text/encoding"
	utf "golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"

	"accesskeys/internal/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/config"
	"accesskeys/internal/postgres"
	"accesskeys/internal/secret"
	"accesskeys/internal/store"
)

func migrateUp(ctx context.Context, inv invocation) error {
	return migrateTo(ctx, inv, "migrate up", func(ctx context.Context, cfg *config.Settings) (int, error) {
		log, flush := newLogger(inv.stderr, cfg)
		defer flush()
		return store.Migrator(cfg.DatabaseURL, log).Up(ctx)
	})
}

// lostWith says what goes with each step of the schema, besides what only the running servers need.
func lostWith(version int) string {
	switch version {
	case 1:
		return "every customer, agent and access key"
	case 2:
		return "sign-ups under way and service accounts with their key pairs; access keys of agents, and those with fewer rights than an admin, are deleted"
	case 3:
		return "when each access key was used last"
	case 4:
		return "who made each access key; access keys that service accounts made are deleted"
	default:
		return "what came with it"
	}
}

func migrateDown(ctx context.Context, inv invocation) error {
	flags, given := inv.flagSet("migrate down")
	yes := flags.Bool("yes", false, "don't ask, whatever data is lost")
	cfg, err := inv.parseSome(flags, given, []string{"DATABASE_URL"}, "DATABASE_URL")
	if err != nil {
		return err
	}
	log, flush := newLogger(inv.stderr, cfg)
	defer flush()
	takeBack := inv.takeBackAgreed
	if *yes {
		takeBack = func(ctx context.Context, m postgres.Migrator) (int, error) { return m.Down(ctx) }
	}
	version, err := takeBack(ctx, store.Migrator(cfg.DatabaseURL, log))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(inv.stdout, version)
	return err
}

// takeBackAgreed takes the newest step back, once somebody has agreed where data is lost.
func (inv invocation) takeBackAgreed(ctx context.Context, m postgres.Migrator) (int, error) {
	for agreed := 0; ; {
		version, err := m.DownAgreed(ctx, agreed)
		loss, loses := errors.AsType[*postgres.LossError](err)
		if !loses {
			return version, err
		}
		if err := inv.confirmLoss(loss.Version); err != nil {
			return 0, err
		}
		agreed = loss.Version // by now the newest may be another, which is asked for too
	}
}

// confirmLoss returns nil where somebody at a terminal agrees to lose what goes with a step.
func (inv invocation) confirmLoss(version int) error {
	loss := fmt.Sprintf("version %d of the schema would be taken back, and with it is lost: %s", version, lostWith(version))
	if _, is := inv.terminal(); !is {
		return config.Usagef("%s. Nothing was changed; --yes does it", loss)
	}
	fmt.Fprintf(inv.stderr, "%s.\nTake it back? [y/N] ", loss)
	answer, err := inv.readText()
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return fmt.Errorf("version %d of the schema was not taken back: the answer was not yes", version)
	}
	return nil
}

func migrateVersion(ctx context.Context, inv invocation) error {
	return migrateTo(ctx, inv, "migrate version", func(ctx context.Context, cfg *config.Settings) (int, error) {
		return postgres.SchemaVersion(ctx, cfg.DatabaseURL)
	})
}

// migrateTo runs a migration command and prints the version that it leaves.
func migrateTo(ctx context.Context, inv invocation, words string, do func(context.Context, *config.Settings) (int, error)) error {
	flags, given := inv.flagSet(words)
	cfg, err := inv.parseSome(flags, given, []string{"DATABASE_URL"}, "DATABASE_URL")
	if err != nil {
		return err
	}
	version, err := do(ctx, cfg)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(inv.stdout, version)
	return err
}

func createCustomer(ctx context.Context, inv invocation) error {
	flags, given := inv.flagSet("customer create")
	name := textFlag(flags, "name", store.MaxName, "the customer's name (required)")
	detail := textFlag(flags, "detail", store.MaxDetail, "what there is to say of it")
	email := textFlag(flags, "email", store.MaxName, "its address")
	s, _, err := inv.openStore(ctx, flags, given)
	if err != nil {
		return err
	}
	defer s.Close()
	if *name == "" {
		return config.Usagef("--name is missing: it takes the customer's name")
	}
	c, err := s.CreateCustomer(ctx, store.Operator(), store.NewCustomer{Name: *name, Detail: *detail, Email: *email})
	if err != nil {
		return err
	}
	return inv.print(api.RenderCustomer(c))
}

func createAgent(ctx context.Context, inv invocation) error {
	flags, given := inv.flagSet("agent create")
	customer := idFlag(flags, "customer", "the id of the agent's customer (required)")
	username := textFlag(flags, "username", store.MaxName, "the name to log in with (required)")
	name := textFlag(flags, "name", store.MaxName, "the person's name")
	detail := textFlag(flags, "detail", store.MaxDetail, "what there is to say of it")
	permission := auth.PermissionNone
	// A superadmin, who sees all customers, is made here or nowhere.
	flags.Func("permission", "admin, manager, agent or superadmin (required)", func(v string) error {
		var ok bool
		if permission, ok = auth.NamedPermission(v); !ok {
			return errors.New("it takes admin, manager, agent or superadmin")
		}
		return nil
	})
	s, _, err := inv.openStore(ctx, flags, given)
	if err != nil {
		return err
	}
	defer s.Close()
	switch {
	case *customer == uuid.Nil:
		return config.Usagef("--customer is missing: it takes the id of the agent's customer")
	case *username == "":
		return config.Usagef("--username is missing: it takes the name to log in with")
	case store.CheckUsername(*username) != nil:
		return config.Usagef("--username: %w", store.ErrUsername)
	case permission == auth.PermissionNone:
		return config.Usagef("--permission is missing: it takes admin, manager, agent or superadmin")
	}
	password, err := inv.readPassword()
	if err != nil {
		return err
	}
	if err := customerExists(ctx, s, *customer); err != nil {
		return err
	}
	passwords, err := auth.NewPasswords(1, time.Second, auth.DefaultHashCost())
	if err != nil {
		return err
	}
	hash, err := passwords.Hash(ctx, password)
	if err != nil {
		return err
	}
	agent, err := s.CreateAgent(ctx, store.Operator(), store.NewAgent{
		CustomerID: *customer, Username: *username, PasswordHash: hash, Name: *name, Detail: *detail,
		Permission: int64(permission),
	})
	if errors.Is(err, store.ErrUsernameTaken) {
		return config.Usagef("--username: an agent with this username exists already")
	}
	if err != nil {
		return err
	}
	return inv.print(api.RenderAgent(agent))
}

func createAccessKey(ctx context.Context, inv invocation) error {
	flags, given := inv.flagSet("accesskey create")
	customer := idFlag(flags, "customer", "the id of the key's customer (required)")
	name := textFlag(flags, "name", store.MaxName, "what the key is for")
	detail := textFlag(flags, "detail", store.MaxDetail, "what there is to say of it")
	expire := flags.Int64("expire", store.DefaultExpire, "seconds until it expires")
	s, cfg, err := inv.openStore(ctx, flags, given)
	if err != nil {
		return err
	}
	defer s.Close()
	switch {
	case *customer == uuid.Nil:
		return config.Usagef("--customer is missing: it takes the id of the key's customer")
	case *expire < cfg.AccessKeyMinExpire || *expire > store.MaxExpire:
		return config.Usagef("--expire: it takes a whole number of seconds from %d to %d", cfg.AccessKeyMinExpire, int64(store.MaxExpire))
	}
	if err := customerExists(ctx, s, *customer); err != nil {
		return err
	}
	token := auth.NewAccessToken()
	key, err := s.CreateAccessKey(ctx, store.Operator(), store.NewAccessKey{
		CustomerID: *customer, Name: *name, Detail: *detail, TokenHash: token.Hash(), TokenPrefix: token.Prefix(),
		Expire: *expire,
	})
	if err != nil {
		return err
	}
	return inv.print(api.RenderCreatedAccessKey(key, token))
}

func customerExists(ctx context.Context, s *store.Store, id uuid.UUID) error {
	_, err := s.Customer(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return config.Usagef("--customer: there is no customer with this id")
	}
	return err
}

// openStore parses the command line and opens the store of a command that works on a migrated database.
func (inv invocation) openStore(ctx context.Context, flags *flag.FlagSet, given *config.Flags) (*store.Store, *config.Settings, error) {
	cfg, err := inv.parseSome(flags, given, []string{"DATABASE_URL", "ACCESSKEY_MIN_EXPIRE"}, "DATABASE_URL")
	if err != nil {
		return nil, nil, err
	}
	s, err := store.Open(ctx, cfg.DatabaseURL)
	if err != nil {
		return nil, nil, config.Usagef("DATABASE_URL: %w", err)
	}
	if err := s.DB.Ready(ctx); err != nil {
		s.Close()
		return nil, nil, fmt.Errorf("%w (server migrate up prepares a database)", err)
	}
	return s, cfg, nil
}

func (inv invocation) print(body []byte, err error) error {
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(inv.stdout, "%s\n", body)
	return err
}

// readPassword reads one line from standard input; at a terminal it asks, and does not show what is typed.
func (inv invocation) readPassword() (secret.Value, error) {
	line, err := inv.readLine()
	if err != nil {
		return secret.Value{}, fmt.Errorf("reading the password: %w", err)
	}
	if line == "" {
		return secret.Value{}, config.Usagef("the password is missing: it is read from standard input, one line")
	}
	if strings.ContainsAny(line, "\x00\uFFFD") || !utf8.ValidString(line) { // U+FFFD stands for what could not be decoded
		return secret.Value{}, config.Usagef("the password is not text: it must be UTF-8, or UTF-16 with a byte order mark, without the character NUL")
	}
	return secret.New(line), nil
}

func (inv invocation) readLine() (string, error) {
	if descriptor, is := inv.terminal(); is {
		fmt.Fprint(inv.stderr, "Password: ")
		line, err := term.ReadPassword(descriptor)
		fmt.Fprintln(inv.stderr)
		return string(line), err
	}
	return inv.readText()
}

// terminal is that of standard input, if it is one.
func (inv invocation) terminal() (descriptor int, is bool) {
	f, ok := inv.stdin.(*os.File)
	if !ok {
		return 0, false
	}
	descriptor = int(f.Fd())
	return descriptor, term.IsTerminal(descriptor)
}

// readText reads one line from standard input.
func (inv invocation) readText() (string, error) {
	text := bufio.NewReader(inv.stdin)
	line, err := text.ReadString('\n')
	if line != "" && strings.Contains("\xef\xfe\xff", line[:1]) { // a mark; in UTF-16 the line may end elsewhere
		marked := transform.NewReader(io.MultiReader(strings.NewReader(line), text), unmarked())
		line, err = bufio.NewReader(marked).ReadString('\n')
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// unmarked takes text as programs on Windows write it too, with a byte order mark, in UTF-8 or UTF-16. Without a mark it changes nothing.
func unmarked() transform.Transformer {
	return utf.BOMOverride(encoding.Nop.NewDecoder())
}

func textFlag(flags *flag.FlagSet, name string, most int, about string) *string {
	value := new(string)
	flags.Func(name, about, func(v string) error {
		*value = v
		return config.CheckText(v, most)
	})
	return value
}

func idFlag(flags *flag.FlagSet, name, about string) *uuid.UUID {
	id := new(uuid.UUID)
	flags.Func(name, about, func(v string) (err error) {
		*id, err = uuid.Parse(v)
		return err
	})
	return id
}
