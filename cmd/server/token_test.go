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
	return id, writeFile(t, newFolder(t), "credentials.json", got.body)
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
	plain := must(base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1]))(t)
	ok(t, json.Unmarshal(plain, &claims))
	return claims
}

// Server token sign --credentials credentials.json [--expire 3600] prints Authorization: Bearer ... What it prints works against a server,
// for each kind of key, from one second to an hour; it needs no setting.
func TestSignedTokenWorksAgainstAServer(t *testing.T) {
	t.Parallel()
	base := served(t, pgtest.Migrated(t), nil).base()
	for _, algorithm := range []string{"RS256", "ES256", "EdDSA"} {
		id, file := newCredentials(t, base, testKey, algorithm)
		for flags, lifetime := range map[string]int64{"": 3600, "--expire=3600": 3600, "--expire=1": 1, "--expire=60": 60} {
			token := signed(t, map[string]string{"JWT_SECRET": "stray"}, append([]string{"--credentials", file}, strings.Fields(flags)...)...)
			if c := claimsOf(t, token); c.Iss != id || c.Exp-c.Iat != lifetime || c.Aud != nil {
				t.Errorf("%s %s: claims %+v", algorithm, flags, c)
			}
			if me := call(t, "GET", base+"/v1.0/me", token, "").wants(t, 200); me["id"] != id || me["type"] != "service_account" {
				t.Errorf("%s %s: %v", algorithm, flags, me)
			}
		}
		token := signed(t, nil, "--credentials", file)
		call(t, "GET", base+"/v1.0/me?token="+token, "", "").wants(t, 200)
		call(t, "GET", base+"/v1.0/accesskeys", token, "").wants(t, 200)
		call(t, "POST", base+"/v1.0/accesskeys", token, "{}").refuses(t, 403, "PERMISSION_DENIED")
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
	named := served(t, database, map[string]string{"AUDIENCE": us}).base()
	unnamed := served(t, database, nil).base()
	_, file := newCredentials(t, named, testKey, "EdDSA")
	for _, test := range []struct {
		setting, flag  string
		aud            any
		named, unnamed int
	}{
		{"", "", nil, 200, 200}, {"", us, us, 200, 401}, {us, "", us, 200, 401}, {us, "https://other.example", "https://other.example", 401, 401},
	} {
		args := []string{"--credentials", file}
		if test.flag != "" {
			args = append(args, "--audience", test.flag)
		}
		token := signed(t, map[string]string{"AUDIENCE": test.setting}, args...)
		if c := claimsOf(t, token); c.Aud != test.aud {
			t.Errorf("%+v: aud %v", test, c.Aud)
		}
		for base, code := range map[string]int{named: test.named, unnamed: test.unnamed} {
			if got := call(t, "GET", base+"/v1.0/me", token, ""); got.code != code {
				t.Errorf("%+v: status %d, want %d", test, got.code, code)
			}
		}
	}
}

// windowsTexts are the ways in which programs on Windows write a text: with a byte order mark, in UTF-8 or UTF-16.
func windowsTexts(t *testing.T, text string) map[string]string {
	t.Helper()
	encoded := map[string]string{"UTF-8": "\ufeff" + text}
	for name, order := range map[string]unicode.Endianness{"UTF-16LE": unicode.LittleEndian, "UTF-16BE": unicode.BigEndian} {
		encoded[name] = must(unicode.UTF16(order, unicode.UseBOM).NewEncoder().String(text))(t)
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
	content := must(os.ReadFile(good))(t)
	for name, text := range windowsTexts(t, string(content)) {
		call(t, "GET", base+"/v1.0/me", signed(t, nil, "--credentials", writeFile(t, newFolder(t), name, text)), "").wants(t, 200)
		cut := writeFile(t, newFolder(t), name, text[:len(text)-3])
		if _, _, err := cli(t, nil, "", "token", "sign", "--credentials", cut); err == nil || strings.Contains(err.Error(), "PRIVATE") {
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
	base := served(t, pgtest.Migrated(t), nil).base()
	_, good := newCredentials(t, base, testKey, "EdDSA")
	text := string(must(os.ReadFile(good))(t))
	key := object(t, text)["private_key"].(string)
	marker := strings.Split(key, "\n")[1]
	folder := newFolder(t)
	file := func(content string) string {
		return writeFile(t, folder, fmt.Sprintf("%x.json", auth.NewAccessToken().Hash()), content)
	}
	with := func(name, value string) string {
		fields := object(t, text)
		fields[name] = value
		return file(string(must(json.Marshal(fields))(t)))
	}
	refused := func(want string, args ...string) {
		t.Helper()
		p := spawn(t, nil, "", append([]string{"token", "sign"}, args...)...)
		p.says(2, "(?s:.*usage.*\n)?server: "+want+"\n")
		if said := p.stderr.String(); strings.Contains(said, marker[20:40]) || strings.Contains(said, marker[40:]) {
			t.Errorf("token sign %.20q: the error shows the private key", args)
		}
	}
	refused("--credentials is missing: it takes the file that a new key pair was answered with")
	refused(`"3600" is not expected; a value belongs to a flag`, "--credentials", good, "3600")
	refused(`invalid value "1.5" for flag -expire: parse error`, "--credentials", good, "--expire=1.5")
	for _, expire := range []string{"0", "-1", "3601", "9223372036854775807"} {
		refused("--expire: it takes a whole number of seconds from 1 to 3600", "--credentials", good, "--expire="+expire)
	}
	const unreadable, noObject = "the file can't be read: ", ".* is not a JSON object with account_id, key_id and private_key"
	for _, test := range []struct{ credentials, want string }{
		{filepath.Join(folder, "none.json"), unreadable + "no such file or directory"},
		{folder, unreadable + "is a directory"},
		{text, unreadable + "(file name too long|no such file or directory)"},
		{key, unreadable + "no such file or directory"},
		{file(""), noObject},
		{file(text[:len(text)-3]), noObject},
		{file("[" + text + "]"), noObject},
		{file(text + text), noObject},
		{file(key), noObject},
		{with("account_id", ""), noObject},
		{with("key_id", ""), noObject},
		{with("private_key", ""), noObject},
		{with("private_key", marker), "the private key is not a PEM block PRIVATE KEY"},
		{with("private_key", strings.ReplaceAll(key, "PRIVATE", "EC PRIVATE")), "the private key is not a PEM block PRIVATE KEY"},
		{with("private_key", strings.Replace(key, marker, marker[:60], 1)), "the private key can't be read.*"},
	} {
		refused("--credentials: "+test.want, "--credentials", test.credentials)
	}
	signed(t, nil, "--credentials", good) // the control
}
