package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/text/encoding/unicode"

	"accesskeys/internal/auth"
	"accesskeys/internal/pgtest"
)

// newCredentials makes a service account with a key through HTTP and returns its id and the file with its private key.
func newCredentials(t *testing.T, base, bearer, algorithm string) (id, file string) {
	t.Helper()
	id = call(t, "POST", base+"/v1.0/service_accounts", bearer, `{"name":"ci","roles":["accesskey_viewer"]}`).wants(t, 200)["id"].(string)
	got := call(t, "POST", base+"/v1.0/service_accounts/"+id+"/keys", bearer, `{"algorithm":"`+algorithm+`"}`)
	got.wants(t, 200)
	file = filepath.Join(newFolder(t), "credentials.json")
	if err := os.WriteFile(file, []byte(got.body), 0o600); err != nil {
		t.Fatal(err)
	}
	return id, file
}

// signed runs `token sign` to its end and returns the token, which has to be printed as the contract's header.
func signed(t *testing.T, env map[string]string, args ...string) string {
	t.Helper()
	out, log, err := cli(t, env, "", append([]string{"token", "sign"}, args...)...)
	if err != nil || log != "" {
		t.Fatalf("token sign %v: %v\n%s", args, err, log)
	}
	found := regexp.MustCompile(`^Authorization: Bearer ([\w-]+\.[\w-]+\.[\w-]+)\n$`).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("token sign printed another thing than a header")
	}
	return found[1]
}

// claimsOf are a token's claims, unverified.
func claimsOf(t *testing.T, token string) (claims struct {
	Iss      string
	Iat, Exp int64
	Aud      any
}) {
	t.Helper()
	plain, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err == nil {
		err = json.Unmarshal(plain, &claims)
	}
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

// Server token sign --credentials credentials.json [--expire 3600] prints Authorization: Bearer ... What it prints works against a server,
// for each kind of key, from one second to an hour; it needs no setting.
func TestSignedTokenWorksAgainstAServer(t *testing.T) {
	t.Parallel()
	base := launch(t, environment(pgtest.Migrated(t), nil), "serve").base()
	for _, algorithm := range []string{"RS256", "ES256", "EdDSA"} {
		id, file := newCredentials(t, base, testKey, algorithm)
		for flags, lifetime := range map[string]int64{"": 3600, "--expire=3600": 3600, "--expire=1": 1, "--expire=60": 60} {
			token := signed(t, nil, append([]string{"--credentials", file}, strings.Fields(flags)...)...)
			c := claimsOf(t, token)
			if c.Iss != id || c.Exp-c.Iat != lifetime || c.Aud != nil {
				t.Errorf("%s %s: claims %+v", algorithm, flags, c)
			}
			for _, got := range []answer{call(t, "GET", base+"/v1.0/me", token, ""), call(t, "GET", base+"/v1.0/me?token="+token, "", "")} {
				if me := got.wants(t, 200); me["id"] != id || me["type"] != "service_account" {
					t.Errorf("%s %s: %s", algorithm, flags, got.body)
				}
			}
			call(t, "GET", base+"/v1.0/accesskeys", token, "").wants(t, 200)
			call(t, "POST", base+"/v1.0/accesskeys", token, "{}").refuses(t, 403, "PERMISSION_DENIED")
		}
		// The program itself: a stray setting of a server's does not matter to it.
		p := spawn(t, nil, "", "token", "sign", "--credentials", file)
		if code := p.code(); code != 0 || p.stderr.String() != "" {
			t.Fatalf("exit code %d: %s", code, p.stderr)
		}
		token := strings.TrimSuffix(strings.TrimPrefix(p.stdout.String(), "Authorization: Bearer "), "\n")
		call(t, "GET", base+"/v1.0/me", token, "").wants(t, 200)
		call(t, "DELETE", base+"/v1.0/service_accounts/"+id, testKey, "").wants(t, 200)
		call(t, "GET", base+"/v1.0/me", token, "").refuses(t, 401, "INVALID_CREDENTIALS")
	}
}

// "aud checked where sent (AUDIENCE setting)": a server that has the setting takes tokens for itself and such as name
// nobody, one that has not takes none that names anybody.
func TestAudienceOfSignedTokensIsTheServersSetting(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	const us = "https://keys.example"
	named := launch(t, environment(database, map[string]string{"AUDIENCE": us}), "serve").base()
	unnamed := launch(t, environment(database, nil), "serve").base()
	_, file := newCredentials(t, named, testKey, "EdDSA")
	for _, test := range []struct {
		env            map[string]string
		flag           string
		aud            any
		named, unnamed int
	}{
		{nil, "", nil, 200, 200},
		{nil, us, us, 200, 401},
		{map[string]string{"AUDIENCE": us}, "", us, 200, 401},
		{map[string]string{"AUDIENCE": us}, "https://other.example", "https://other.example", 401, 401},
	} {
		args := []string{"--credentials", file}
		if test.flag != "" {
			args = append(args, "--audience", test.flag)
		}
		token := signed(t, test.env, args...)
		if c := claimsOf(t, token); c.Aud != test.aud {
			t.Errorf("%v %s: aud %v", test.env, test.flag, c.Aud)
		}
		for base, code := range map[string]int{named: test.named, unnamed: test.unnamed} {
			if got := call(t, "GET", base+"/v1.0/me", token, ""); got.code != code {
				t.Errorf("%v %s: status %d, want %d", test.env, test.flag, got.code, code)
			}
		}
	}
}

// windowsTexts are the ways in which programs on Windows write a text: with a byte order mark, in UTF-8 or UTF-16.
func windowsTexts(t *testing.T, text string) map[string]string {
	t.Helper()
	encoded := map[string]string{"UTF-8": "\ufeff" + text}
	for name, order := range map[string]unicode.Endianness{"UTF-16LE": unicode.LittleEndian, "UTF-16BE": unicode.BigEndian} {
		var err error
		if encoded[name], err = unicode.UTF16(order, unicode.UseBOM).NewEncoder().String(text); err != nil {
			t.Fatal(err)
		}
	}
	return encoded
}

// PowerShell and Notepad write credentials, passwords and answers with a byte order mark, or as UTF-16.
func TestTextsOfWindowsAreRead(t *testing.T) {
	t.Parallel()
	database := pgtest.Migrated(t)
	env := environment(database, nil)
	base := launch(t, env, "serve").base()
	_, good := newCredentials(t, base, testKey, "EdDSA")
	content, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range windowsTexts(t, string(content)) {
		file := filepath.Join(newFolder(t), "credentials.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		call(t, "GET", base+"/v1.0/me", signed(t, nil, "--credentials", file), "").wants(t, 200)
		if err := os.WriteFile(file, []byte(text[:len(text)-3]), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := cli(t, nil, "", "token", "sign", "--credentials", file); err == nil || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s, cut: %v", name, err)
		}
	}
	customer := sql(t, database, `SELECT id::text FROM customers`)
	for name, text := range windowsTexts(t, "p\u00e4ss \u0a0a word\r\nignored\r\n") {
		printed(t, env, text, "agent", "create", "--customer", customer, "--username", name, "--permission", "agent")
		login(t, base, name, "p\u00e4ss \u0a0a word").wants(t, 200)
	}
	for _, text := range []string{"p\x00a\x00s\x00s\x00\n\x00", "\xff\xfe\x00\xd8p\x00\n\x00", "\xe4\n"} { // no mark; half a pair; Latin-1
		_, _, err := cli(t, env, text, "agent", "create", "--customer", customer, "--username", "none", "--permission", "agent")
		if err == nil || !strings.Contains(err.Error(), "the password is not text") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Wrong files and bounds end with code 2 and one line that names the flag; what is in the file, the private key before
// all, is in no error, not even where the file's content is given for its name.
func TestSigningRefusesWhatIsWrongWithoutShowingIt(t *testing.T) {
	t.Parallel()
	base := launch(t, environment(pgtest.Migrated(t), nil), "serve").base()
	_, good := newCredentials(t, base, testKey, "EdDSA")
	content, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	key := object(t, text)["private_key"].(string)
	marker := strings.Split(key, "\n")[1]
	folder := newFolder(t)
	file := func(name, content string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	with := func(name, value string) string {
		fields := object(t, text)
		fields[name] = value
		changed, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		return file(fmt.Sprintf("%x.json", auth.NewAccessToken().Hash()), string(changed))
	}
	const noObject = "is not a JSON object with account_id, key_id and private_key"
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no flag":            {nil, "--credentials is missing: it takes the file that a new key pair was answered with"},
		"no file":            {[]string{"--credentials", filepath.Join(folder, "none.json")}, "--credentials: the file can't be read: no such file or directory"},
		"a folder":           {[]string{"--credentials", folder}, "--credentials: the file can't be read: is a directory"},
		"the content itself": {[]string{"--credentials", text}, "--credentials: the file can't be read: file name too long|no such file or directory"},
		"the key itself":     {[]string{"--credentials", key}, "--credentials: the file can't be read: no such file or directory"},
		"empty":              {[]string{"--credentials", file("empty", "")}, noObject},
		"cut":                {[]string{"--credentials", file("cut", text[:len(text)-3])}, noObject},
		"a list":             {[]string{"--credentials", file("list", "["+text+"]")}, noObject},
		"twice":              {[]string{"--credentials", file("twice", text+text)}, noObject},
		"PEM alone":          {[]string{"--credentials", file("pem", key)}, noObject},
		"no account":         {[]string{"--credentials", with("account_id", "")}, noObject},
		"no key id":          {[]string{"--credentials", with("key_id", "")}, noObject},
		"no key":             {[]string{"--credentials", with("private_key", "")}, noObject},
		"no PEM":             {[]string{"--credentials", with("private_key", marker)}, "the private key is not a PEM block PRIVATE KEY"},
		"another block":      {[]string{"--credentials", with("private_key", strings.ReplaceAll(key, "PRIVATE", "EC PRIVATE"))}, "the private key is not a PEM block PRIVATE KEY"},
		"a broken key":       {[]string{"--credentials", with("private_key", strings.Replace(key, marker, marker[:60], 1))}, "the private key can't be read"},
		"expire 0":           {[]string{"--credentials", good, "--expire=0"}, "--expire: it takes a whole number of seconds from 1 to 3600"},
		"expire -1":          {[]string{"--credentials", good, "--expire=-1"}, "--expire: it takes a whole number of seconds from 1 to 3600"},
		"expire 3601":        {[]string{"--credentials", good, "--expire=3601"}, "--expire: it takes a whole number of seconds from 1 to 3600"},
		"expire that wraps":  {[]string{"--credentials", good, "--expire=9223372036854775807"}, "--expire: it takes a whole number of seconds from 1 to 3600"},
		"expire a fraction":  {[]string{"--credentials", good, "--expire=1.5"}, `invalid value "1.5" for flag -expire: parse error`},
		"a leftover":         {[]string{"--credentials", good, "3600"}, `"3600" is not expected; a value belongs to a flag`},
	} {
		p := spawn(t, nil, "", append([]string{"token", "sign"}, test.args...)...)
		code, said := p.code(), p.stderr.String()
		matches := false
		for want := range strings.SplitSeq(test.want, "|") {
			matches = matches || strings.HasSuffix(said, want+"\n")
		}
		if code != 2 || p.stdout.String() != "" || !matches {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", name, code, p.stdout, said)
		}
		if strings.Contains(said, marker[20:40]) || strings.Contains(said, marker[40:]) {
			t.Errorf("%s: the error shows the private key", name)
		}
	}
	signed(t, nil, "--credentials", good) // the control
}
