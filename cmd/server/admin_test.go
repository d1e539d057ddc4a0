package main

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"accesskeys/internal/config"
	"accesskeys/internal/pgtest"
)

// Contract, section 6: server migrate up|down|version: up, down and up again, each as often as one likes.
func TestMigrateGoesUpAndDownAndUp(t *testing.T) {
	t.Parallel()
	database := pgtest.Empty(t)
	env := map[string]string{"DATABASE_URL": database.Reveal()}
	const way = "version 0 down 0 up 7 version 7 up 7 down 6 down 5 down 4 down 3 version 3 down 2 up 7 down 6 down 5 down 4 down 3 " +
		"down 2 down 1 version 1 down 0 version 0 down 0 up 7"
	for step := range slices.Chunk(strings.Fields(way), 2) {
		prints(t, env, step[1]+"\n", "migrate", step[0])
		if tables := tablesOf(t, database); (tables == "") != (step[1] == "0") {
			t.Errorf("after %q there are the tables %q", step, tables)
		}
	}
	printed(t, env, "", "customer", "create", "--name", "acme") // the schema of the second way up works
}

// Contract, section 6: customer create ... prints JSON, as do the next two, in the shapes of sections 1 and 5; what they make works in the
// API, and there only for its own customer.
func TestWhatTheCommandLineMakesWorksInTheAPI(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	env := environment(database, nil)
	base := launch(t, env, "serve").base() // with a customer of its own, acme

	text, globex := printed(t, env, "", "customer", "create", "--name", "Globex 語", "--detail", "a & b <c>", "--email", "post@globex.example")
	id := globex["id"].(string)
	if globex["name"] != "Globex 語" || globex["detail"] != "a & b <c>" || globex["email"] != "post@globex.example" {
		t.Errorf("the customer printed: %s", text)
	}

	keyText, key := printed(t, env, "", "accesskey", "create", "--customer", id, "--name", "ci", "--detail", "of the build", "--expire", "3600")
	token := key["token"].(string)
	if got := call(t, "GET", base+"/v1.0/customer", token, ""); got.body != text {
		t.Errorf("GET /v1.0/customer: %s\nprinted: %s", got.body, text)
	}
	shown := call(t, "GET", base+"/v1.0/accesskeys/"+key["id"].(string), token, "")
	withToken := strings.Replace(shown.body, `"token_prefix"`, `"token":"`+token+`","token_prefix"`, 1)
	if withToken != keyText {
		t.Errorf("GET /v1.0/accesskeys/{id} and the token: %s\nprinted: %s", withToken, keyText)
	}
	if made, there := key["created_by"]; made != nil || !there || !strings.HasSuffix(keyText, `,"created_by":null}`) {
		t.Errorf("who made the key printed: %s", keyText)
	}
	_, lasting := printed(t, env, "", "accesskey", "create", "--customer", id) // contract, section 4: absent or `null`: 31536000
	for want, id := range map[string]any{"3600": key["id"], "31536000": lasting["id"]} {
		if expire := sql(t, database, `SELECT extract(epoch FROM tm_expire - tm_create)::int FROM accesskeys WHERE id = $1`, id); expire != want {
			t.Errorf("the key is for %s s, want %s", expire, want)
		}
	}
	call(t, "GET", base+"/v1.0/accesskeys/"+key["id"].(string), testKey, "").refuses(t, 403, "PERMISSION_DENIED")

	for permission, want := range map[string]float64{"admin": 32, "manager": 64, "agent": 16, "superadmin": 1} {
		username, password := permission+"@Globex.example", " pass word of "+permission+" "
		_, agent := printed(t, env, password+"\r\nignored\n", "agent", "create", "--customer", id, "--username", username,
			"--permission", permission, "--name", "N", "--detail", "D")
		jwt := login(t, base, strings.ToLower(username), password).wants(t, 200)["token"].(string)
		me := call(t, "GET", base+"/v1.0/me", jwt, "").wants(t, 200)
		delete(me, "type")
		if !reflect.DeepEqual(me, agent) || agent["permission"] != want || agent["customer_id"] != id {
			t.Errorf("%s: /v1.0/me %v, printed %v", permission, me, agent)
		}
	}
	if dump := sql(t, database, `SELECT string_agg(a::text, ' ') FROM agents a`); strings.Contains(dump, "pass word") {
		t.Errorf("a password is stored as it is: %s", dump)
	}
}

// Contract, section 6: password on standard input, never an argument; and what is asked for wrongly changes nothing.
func TestCommandLineRefusesWhatItCannotMake(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	env := map[string]string{"DATABASE_URL": database.Reveal()}
	_, acme := printed(t, env, "", "customer", "create", "--name", "acme")
	_, globex := printed(t, env, "", "customer", "create", "--name", "globex")
	id := acme["id"].(string)
	agent := []string{"agent", "create", "--username=u", "--permission=admin", "--customer=" + id}
	printed(t, env, "p\n", "agent", "create", "--username=Admin", "--permission=agent", "--customer="+globex["id"].(string))
	before := census(t, database)

	const nobody, long = "2b0f9a1c-7c5e-4b7e-9d51-0d2c7a3f8e11", 256
	with := func(args []string, more ...string) []string { return append(append([]string{}, args...), more...) }
	key := []string{"accesskey", "create", "--customer=" + id}
	for name, test := range map[string]struct {
		args  []string
		stdin string
		want  string
	}{
		"customer without a name":    {[]string{"customer", "create"}, "", "--name is missing"},
		"customer, name too long":    {[]string{"customer", "create", "--name=" + strings.Repeat("é", long)}, "", "at most 255 characters"},
		"customer, name no text":     {[]string{"customer", "create", "--name=\xff"}, "", "characters of text"},
		"agent of nobody":            {with(agent, "--customer="+nobody), "p\n", "--customer: there is no customer with this id"},
		"agent, id of no customer":   {with(agent, "--customer=acme"), "p\n", "flag -customer"},
		"agent without a customer":   {agent[:4], "p\n", "--customer is missing"},
		"agent, username taken":      {with(agent, "--username=aDMIN"), "p\n", "--username: an agent with this username exists already"},
		"agent without a username":   {with(agent, "--username="), "p\n", "--username is missing"},
		"agent without permission":   {[]string{agent[0], agent[1], agent[2], agent[4]}, "p\n", "--permission is missing: it takes admin, manager, agent"},
		"agent, unknown permission":  {with(agent, "--permission=root"), "p\n", "it takes admin, manager, agent or superadmin"},
		"agent, number for one":      {with(agent, "--permission=32"), "p\n", "it takes admin, manager, agent or superadmin"},
		"agent without a password":   {agent, "", "the password is missing: it is read from standard input"},
		"agent, empty password":      {agent, "\nhunter2\n", "the password is missing: it is read from standard input"},
		"agent, password no text":    {agent, "hunter2\xff\n", "the password is not text"},
		"agent, password with NUL":   {agent, "hunter2\x00\n", "the password is not text"},
		"agent, password as a flag":  {with(agent, "--password=hunter2"), "p\n", "not defined: -password"},
		"key of nobody":              {with(key, "--customer="+nobody), "", "--customer: there is no customer with this id"},
		"key without a customer":     {key[:2], "", "--customer is missing"},
		"key, zero expire":           {with(key, "--expire=0"), "", "--expire: it takes a whole number of seconds from 1 to 3153600000"},
		"key, negative expire":       {with(key, "--expire=-1"), "", "--expire: it takes a whole number of seconds from 1 to 3153600000"},
		"key, expire past 100 years": {with(key, "--expire=3153600001"), "", "--expire: it takes a whole number of seconds from 1 to 3153600000"},
		"key, expire that wraps":     {with(key, "--expire=9223372036854775808"), "", "flag -expire"},
		"key, fractional expire":     {with(key, "--expire=1.5"), "", "flag -expire"},
		"key, a token of one's own":  {with(key, "--token=hunter2"), "", "not defined: -token"},
		"key, detail too long":       {with(key, "--detail="+strings.Repeat("x", 4097)), "", "at most 4096 characters"},
	} {
		out, log, err := cli(t, env, test.stdin, test.args...)
		if _, usage := errors.AsType[config.UsageError](err); !usage || !strings.Contains(err.Error(), test.want) || out != "" {
			t.Errorf("%s: %v, printed %q", name, err, out)
		}
		if strings.Contains(fmt.Sprint(err)+log, "hunter2") {
			t.Errorf("%s: the secret shows: %v\n%s", name, err, log)
		}
	}
	hasRows(t, database, before)
}
