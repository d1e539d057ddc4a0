package main

import (
	"maps"
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

// Contract, section 6: all optional and idempotent: on start, make sure that this customer, its admin and this exact key exist.
func TestBootstrapMakesEachThingOnce(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	env := environment(database, nil)
	for start := 1; start <= 3; start++ {
		p := launch(t, env, "serve")
		bootstrapWorks(t, p.base())
		if err := p.end(); err != nil {
			t.Fatal(err)
		}
		if start == 1 { // the lines come in one order
			log := p.stderr.String()
			customer, username, key := strings.Index(log, `"setting":"BOOTSTRAP_CUSTOMER"`), strings.Index(log, `"setting":"BOOTSTRAP_USERNAME"`), strings.Index(log, `"setting":"BOOTSTRAP_ACCESSKEY"`)
			if customer < 0 || username < customer || key < username {
				t.Errorf("the log is\n%s", log)
			}
		}
		if created := strings.Count(p.stderr.String(), `"bootstrap: created"`); created != map[int]int{1: 3}[start] {
			t.Errorf("start %d says %d times that something was created:\n%s", start, created, p.stderr)
		}
		if got := census(t, database); got != oneOfEach {
			t.Errorf("after start %d: %s", start, got)
		}
	}
	// A customer alone, and a customer with a key alone, are as good.
	more := maps.Clone(env)
	more["BOOTSTRAP_CUSTOMER"], more["BOOTSTRAP_ACCESSKEY"] = "globex", "vb_"+strings.Repeat("g", 32)
	delete(more, "BOOTSTRAP_USERNAME")
	delete(more, "BOOTSTRAP_PASSWORD")
	p := launch(t, more, "serve")
	if got := call(t, "GET", p.base()+"/v1.0/customer", more["BOOTSTRAP_ACCESSKEY"], "").wants(t, 200); got["name"] != "globex" {
		t.Errorf("the second customer is %v", got)
	}
	if got := census(t, database); got != "2 customers, 1 agents, 2 keys" {
		t.Error(got)
	}
}

// Contract, section 6: and 4: "From then on the key is refused by every instance": a restart must not undo a deletion, nor reset a password
// that somebody changed.
func TestRestartRevivesNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change string // what an operator did
		found  string // what the log says
		check  func(t *testing.T, base string)
	}{
		"key deleted": {
			`UPDATE accesskeys SET tm_delete = now()`, `"setting":"BOOTSTRAP_ACCESSKEY","found":"deleted"`,
			func(t *testing.T, base string) {
				call(t, "GET", base+"/v1.0/me", testKey, "").refuses(t, 401, "INVALID_CREDENTIALS")
				login(t, base, testUsername, testPassword).wants(t, 200)
			},
		},
		"key expired": {
			`UPDATE accesskeys SET tm_create = now() - interval '2 h', tm_expire = now() - interval '1 h'`,
			`"setting":"BOOTSTRAP_ACCESSKEY","found":"expired"`,
			func(t *testing.T, base string) {
				call(t, "GET", base+"/v1.0/me", testKey, "").refuses(t, 401, "INVALID_CREDENTIALS")
			},
		},
		"admin deleted": {
			`UPDATE agents SET tm_delete = now() WHERE username <> 'other'`, `"setting":"BOOTSTRAP_USERNAME","found":"deleted"`,
			func(t *testing.T, base string) {
				login(t, base, testUsername, testPassword).refuses(t, 401, "INVALID_CREDENTIALS")
				call(t, "GET", base+"/v1.0/me", testKey, "").wants(t, 200)
			},
		},
		"customer deleted": {
			`UPDATE customers SET tm_delete = now() WHERE name = 'acme'`, `"setting":"BOOTSTRAP_CUSTOMER","found":"deleted"`,
			func(t *testing.T, base string) {
				call(t, "GET", base+"/v1.0/me", testKey, "").refuses(t, 401, "INVALID_CREDENTIALS")
				login(t, base, testUsername, testPassword).refuses(t, 401, "INVALID_CREDENTIALS")
			},
		},
		"password changed": {
			`UPDATE agents SET tm_password = now(), password_hash = (SELECT password_hash FROM agents WHERE username = 'other')`, "",
			func(t *testing.T, base string) {
				login(t, base, testUsername, testPassword).refuses(t, 401, "INVALID_CREDENTIALS")
				login(t, base, testUsername, "the other password").wants(t, 200)
			},
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
			if err := p.end(); err != nil {
				t.Fatal(err)
			}
			sql(t, database, test.change)

			p = launch(t, env, "serve")
			test.check(t, p.base())
			if after := census(t, database); after != before {
				t.Errorf("%s, before the restart %s", after, before)
			}
			warnings := slices.DeleteFunc(slices.Collect(strings.Lines(p.stderr.String())), func(line string) bool {
				return !strings.Contains(line, `"level":"WARN"`)
			})
			if test.found == "" && len(warnings) > 0 || test.found != "" && (len(warnings) != 1 || !strings.Contains(warnings[0], test.found)) {
				t.Errorf("the log warns: %q", warnings)
			}
		})
	}
}

// Contract, section 6: make sure that this customer, its admin and this exact key exist: where they are another customer's that can't be,
// and the program says so instead of starting.
func TestBootstrapRefusesWhatIsAnotherCustomers(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	env := environment(database, nil)
	if err := launch(t, env, "serve").started(); err != nil {
		t.Fatal(err)
	}
	before := census(t, database)
	for name, test := range map[string]struct {
		more map[string]string
		want string
	}{
		"username": {map[string]string{"BOOTSTRAP_USERNAME": strings.ToUpper(testUsername), "BOOTSTRAP_ACCESSKEY": ""}, "the username is taken"},
		"key":      {map[string]string{"BOOTSTRAP_USERNAME": "", "BOOTSTRAP_PASSWORD": ""}, "the access key exists"},
	} {
		test.more["BOOTSTRAP_CUSTOMER"] = "globex"
		p := spawn(t, environment(database, test.more), "", "serve")
		last := `server: BOOTSTRAP_CUSTOMER "globex": ` + test.want + ": it belongs to another customer\n"
		if code := p.code(); code != 1 || p.stderr.String() != last {
			t.Errorf("%s: exit code %d, %q", name, code, p.stderr)
		}
	}
	if after := census(t, database); after != before {
		t.Errorf("%s, before %s", after, before)
	}
}

// started waits until the program is ready, and ends it.
func (p *program) started() error {
	p.base()
	return p.end()
}

// Contract, section 1: The token itself is never stored, logged, traced, put in an error or a metric; nor is any other secret.
func TestLogNeverShowsASecret(t *testing.T) {
	t.Parallel()
	database := secret.New(pgtest.Migrated(t).Reveal() + "&password=hunter2-of-the-database")
	p := launch(t, environment(database, map[string]string{"JWT_SECRET_PREVIOUS": "previous-" + testSecret}), "serve")
	base := p.base()
	jwt := login(t, base, testUsername, testPassword).wants(t, 200)["token"].(string)
	login(t, base, testUsername, testPassword+"!").refuses(t, 401, "INVALID_CREDENTIALS")
	call(t, "GET", base+"/v1.0/me?accesskey="+testKey, "", "").wants(t, 200)
	call(t, "GET", base+"/v1.0/me?token="+jwt, "", "").wants(t, 200)
	made := call(t, "POST", base+"/v1.0/accesskeys", testKey, `{"name":"shown"}`).wants(t, 200)
	call(t, "DELETE", base+"/v1.0/accesskeys/"+made["id"].(string), made["token"].(string), "").wants(t, 200)
	call(t, "GET", base+"/v1.0/me", made["token"].(string), "").refuses(t, 401, "INVALID_CREDENTIALS")
	if err := p.end(); err != nil {
		t.Fatal(err)
	}
	log := p.stderr.String() + p.stdout.String()
	if !strings.Contains(log, made["id"].(string)) || !strings.Contains(log, `"route":"/auth/login"`) {
		t.Errorf("this is not the log of these requests:\n%s", log) // the control: what may show does
	}
	for name, value := range map[string]string{
		"JWT_SECRET": testSecret, "BOOTSTRAP_PASSWORD": testPassword, "BOOTSTRAP_ACCESSKEY": testKey, "the JWT": jwt,
		"the new key": made["token"].(string), "the database's password": "hunter2-of-the-database",
	} {
		if strings.Contains(log, value) {
			t.Errorf("%s shows in the log:\n%s", name, log)
		}
	}
}
