package main

import (
	"slices"
	"strings"
	"testing"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
)

// census is how many rows there are, deleted ones included.
func census(t *testing.T, database secret.Value) string {
	t.Helper()
	return sql(t, database, `
		SELECT (SELECT count(*) FROM customers) || ' customers, ' || (SELECT count(*) FROM agents) || ' agents, ' ||
		       (SELECT count(*) FROM accesskeys) || ' keys'`)
}

const oneOfEach = "1 customers, 1 agents, 1 keys"

func hasRows(t *testing.T, database secret.Value, want string) {
	t.Helper()
	if got := census(t, database); got != want {
		t.Errorf("the database has %s, want %s", got, want)
	}
}

// bootstrapWorks fails the test unless the admin can log in and administer, and the key is accepted.
func bootstrapWorks(t *testing.T, base string) {
	t.Helper()
	jwt := login(t, base, testUsername, testPassword).wants(t, 200)["token"].(string)
	me := call(t, "GET", base+"/v1.0/me", jwt, "").wants(t, 200)
	if me["permission"] != 32.0 || me["username"] != testUsername {
		t.Errorf("the admin is %v", me)
	}
	customer := call(t, "GET", base+"/v1.0/customer", testKey, "").wants(t, 200)
	if customer["name"] != "acme" || customer["id"] != me["customer_id"] {
		t.Errorf("the key's customer is %v, the admin is %v", customer, me)
	}
}

// Contract, section 6: and 4: "From then on the key is refused by every instance": a restart must not undo a deletion, nor reset a password
// that somebody changed.
func TestRestartRevivesNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change     string // what an operator did
		found      string // what the log says
		key, login bool   // what works after it
	}{
		"nothing":     {`SELECT 1`, "", true, true},
		"key deleted": {`UPDATE accesskeys SET tm_delete = now()`, `"setting":"BOOTSTRAP_ACCESSKEY","found":"deleted"`, false, true},
		"key expired": {
			`UPDATE accesskeys SET tm_create = now() - interval '2 h', tm_expire = now() - interval '1 h'`,
			`"setting":"BOOTSTRAP_ACCESSKEY","found":"expired"`, false, true,
		},
		"admin deleted": {
			`UPDATE agents SET tm_delete = now() WHERE username <> 'other'`, `"setting":"BOOTSTRAP_USERNAME","found":"deleted"`, true, false,
		},
		"customer deleted": {
			`UPDATE customers SET tm_delete = now() WHERE name = 'acme'`, `"setting":"BOOTSTRAP_CUSTOMER","found":"deleted"`, false, false,
		},
		"password changed": {
			`UPDATE agents SET tm_password = now(), password_hash = (SELECT password_hash FROM agents WHERE username = 'other')`, "", true, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := pgtest.Migrated(t)
			env := environment(database, nil)
			p := launch(t, env, "serve")
			bootstrapWorks(t, p.base())
			_, globex := printed(t, env, "", "customer", "create", "--name=globex")
			printed(t, env, "the other password\n", "agent", "create", "--customer="+globex["id"].(string), "--username=other", "--permission=admin")
			before := census(t, database)
			ok(t, p.end())
			sql(t, database, test.change)

			p = launch(t, env, "serve")
			base := p.base()
			check := map[bool]func(answer){
				true: func(a answer) { a.wants(t, 200) }, false: func(a answer) { a.refuses(t, 401, "INVALID_CREDENTIALS") },
			}
			check[test.key](call(t, "GET", base+"/v1.0/me", testKey, ""))
			check[test.login](login(t, base, testUsername, testPassword))
			if name == "password changed" {
				login(t, base, testUsername, "the other password").wants(t, 200)
			}
			hasRows(t, database, before)
			warnings := warningsOf(p)
			if test.found == "" && len(warnings) > 0 || test.found != "" && (len(warnings) != 1 || !strings.Contains(warnings[0], test.found)) {
				t.Errorf("the log warns: %q", warnings)
			}
		})
	}
}

// warningsOf are the lines of a log that warn.
func warningsOf(p *program) []string {
	return slices.DeleteFunc(slices.Collect(strings.Lines(p.stderr.String())), func(line string) bool {
		return !strings.Contains(line, `"level":"WARN"`)
	})
}

// Contract, section 6: make sure that this customer, its admin and this exact key exist: where they are another customer's that can't be,
// and the program says so instead of starting.
func TestBootstrapRefusesWhatIsAnotherCustomers(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	p := served(t, database, nil)
	p.base()
	ok(t, p.end())
	for want, more := range map[string]map[string]string{
		"the username is taken": {"BOOTSTRAP_USERNAME": strings.ToUpper(testUsername), "BOOTSTRAP_ACCESSKEY": ""},
		"the access key exists": {"BOOTSTRAP_USERNAME": "", "BOOTSTRAP_PASSWORD": ""},
	} {
		more["BOOTSTRAP_CUSTOMER"] = "globex"
		spawn(t, environment(database, more), "", "serve").fails(1, `BOOTSTRAP_CUSTOMER "globex": `+want+": it belongs to another customer")
	}
	hasRows(t, database, oneOfEach)
	// The control: a customer with a key alone, which is its own.
	own := map[string]string{
		"BOOTSTRAP_CUSTOMER": "globex", "BOOTSTRAP_USERNAME": "", "BOOTSTRAP_PASSWORD": "", "BOOTSTRAP_ACCESSKEY": "vb_" + strings.Repeat("g", 32),
	}
	base := served(t, database, own).base()
	if got := call(t, "GET", base+"/v1.0/customer", own["BOOTSTRAP_ACCESSKEY"], "").wants(t, 200); got["name"] != "globex" {
		t.Errorf("the second customer is %v", got)
	}
	hasRows(t, database, "2 customers, 1 agents, 2 keys")
}

// Contract, section 1: nor is any other secret ever logged. That those of requests are not is tested in internal/api.
func TestLogNeverShowsASecret(t *testing.T) {
	t.Parallel()
	database := secret.New(pgtest.Migrated(t).Reveal() + "&password=hunter2-of-the-database")
	env := environment(database, map[string]string{"JWT_SECRET_PREVIOUS": "previous-" + testSecret})
	p := launch(t, env, "serve")
	bootstrapWorks(t, p.base())
	ok(t, p.end())
	log := p.stderr.String() + p.stdout.String()
	if !strings.Contains(log, `"route":"/auth/login"`) { // the control
		t.Errorf("this is not the log of these requests:\n%s", log)
	}
	for _, name := range []string{"JWT_SECRET", "JWT_SECRET_PREVIOUS", "BOOTSTRAP_PASSWORD", "BOOTSTRAP_ACCESSKEY"} {
		if strings.Contains(log, env[name]) || strings.Contains(log, "hunter2") {
			t.Errorf("%s or the database's password shows in the log:\n%s", name, log)
		}
	}
}
