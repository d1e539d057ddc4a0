package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"accesskeys/internal/config"
	"accesskeys/internal/logging"
)

// invocation is all that the program reads and writes. A subcommand gets the arguments after its words.
type invocation struct {
	args    []string
	getenv  func(string) string
	environ func() []string                   // "NAME=value" of all variables
	hangups func() (<-chan os.Signal, func()) // from now on a SIGHUP ends nothing and comes here, until the function is called
	stdin   io.Reader
	stdout  io.Writer // results
	stderr  io.Writer // the log, prompts
}

type command struct {
	words string // as typed
	args  string // for the usage text
	about string
	run   func(context.Context, invocation) error
}

func commands() []command {
	return []command{
		{"serve", "", "migrate the database, bootstrap, and serve", serve},
		{"dev", "[--dir DIR]", "the same on a Postgres of its own, with demo credentials", dev},
		{"migrate up", "", "bring the schema to the newest version", migrateUp},
		{
			"migrate down", "[--yes]",
			"take back the newest step, with the data that it holds: asks first where there is any, or takes --yes", migrateDown,
		},
		{"migrate version", "", "print the schema's version", migrateVersion},
		{"customer create", "--name NAME [--detail TEXT] [--email ADDRESS]", "create a customer and print it", createCustomer},
		{
			"agent create", "--customer ID --username NAME --permission admin|manager|agent|superadmin [--name NAME] [--detail TEXT]",
			"create an agent and print it; its password is read from standard input", createAgent,
		},
		{
			"accesskey create", "--customer ID [--name NAME] [--detail TEXT] [--expire SECONDS]",
			"create an access key and print it with its token, which is not shown again", createAccessKey,
		},
		{
			"token sign", "--credentials FILE [--expire SECONDS] [--audience NAME]",
			"sign a token with a service account's private key and print it as an Authorization header", signToken,
		},
		{"health", "[--url URL]", "ask a server whether it is ready; exit code 0 if so", health},
		{"version", "", "print the version, the commit and the Go release", printVersion},
	}
}

// run is the program without its process: everything it reads and writes is handed in.
func run(ctx context.Context, inv invocation) error {
	args := inv.args
	for _, c := range commands() {
		words := strings.Fields(c.words)
		if len(args) < len(words) || strings.Join(args[:len(words)], " ") != c.words {
			continue
		}
		inv.args = args[len(words):]
		err := c.run(ctx, inv)
		if errors.Is(err, flag.ErrHelp) {
			return nil // the flag set has printed it
		}
		return err
	}
	if len(args) == 0 {
		usage(inv.stderr)
		return config.Usagef("a subcommand is missing")
	}
	if args[0] == "help" || slices.ContainsFunc(args, asksForHelp) {
		usage(inv.stdout)
		return nil
	}
	usage(inv.stderr)
	return config.Usagef("there is no subcommand %q", strings.Join(args[:min(len(args), 2)], " ")) // the rest may hold secrets
}

func asksForHelp(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" }

func usage(w io.Writer) {
	fmt.Fprint(w, "usage: server SUBCOMMAND [flags]\n\nSubcommands:\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  server %s %s\n        %s\n", c.words, c.args, c.about)
	}
	fmt.Fprint(w, "\nSettings, from the environment; those with a flag may be given as one instead:\n")
	config.Describe(w)
}

// flagSet makes a subcommand's flag set, with a flag for each setting that may have one.
func (inv invocation) flagSet(words string) (*flag.FlagSet, *config.Flags) {
	flags := flag.NewFlagSet("server "+words, flag.ContinueOnError)
	flags.SetOutput(inv.stderr)
	flags.Usage = func() {
		fmt.Fprintf(inv.stderr, "usage of server %s:\n", words)
		flags.PrintDefaults()
		fmt.Fprintln(inv.stderr, "`server help` lists the settings that have no flag.")
	}
	return flags, config.AddFlags(flags)
}

// parse parses the flags and then the settings; needed are the names of those that must be set.
func (inv invocation) parse(flags *flag.FlagSet, given *config.Flags, needed ...string) (*config.Settings, error) {
	if err := inv.parseFlags(flags); err != nil {
		return nil, err
	}
	return config.Load(inv.getenv, given, nil, needed...)
}

// parseSome is parse for a command that uses some settings only. The others may be wrong.
func (inv invocation) parseSome(flags *flag.FlagSet, given *config.Flags, used []string, needed ...string) (*config.Settings, error) {
	if err := inv.parseFlags(flags); err != nil {
		return nil, err
	}
	return config.Load(inv.getenv, given, append(used, "LOG_LEVEL", "LOG_FORMAT"), needed...)
}

func (inv invocation) parseFlags(flags *flag.FlagSet) error {
	if err := flags.Parse(inv.args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return config.Usagef("%w", err)
	}
	if flags.NArg() > 0 {
		return config.Usagef("%q is not expected; a value belongs to a flag", flags.Arg(0))
	}
	return nil
}

// newLogger makes the program's logger, to be flushed at the end.
func newLogger(w io.Writer, cfg *config.Settings) (log *slog.Logger, flush func()) {
	return logging.New(w, cfg.LogLevel, cfg.LogFormat == "text")
}
