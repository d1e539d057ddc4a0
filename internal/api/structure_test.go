package api_test

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	document "accesskeys/api"
	"accesskeys/internal/auth"
	"accesskeys/internal/store"
)

// openAPI is api/openapi.yaml, checked.
func openAPI(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := checkedDocument()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// checkedDocument reads and checks it once for all tests: that is slow, and they only read it.
var checkedDocument = sync.OnceValues(func() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(document.OpenAPI)
	if err == nil {
		err = doc.Validate(context.Background())
	}
	return doc, err
})

// documented are the document's operations as "GET /path".
func documented(t *testing.T) (operations []string) {
	t.Helper()
	for path, item := range openAPI(t).Paths.Map() {
		for method := range item.Operations() {
			operations = append(operations, method+" "+path)
		}
	}
	slices.Sort(operations)
	return operations
}

// methodsOf are the document's methods by path.
func methodsOf(t *testing.T) map[string][]string {
	t.Helper()
	methods := map[string][]string{}
	for _, operation := range documented(t) {
		method, path, _ := strings.Cut(operation, " ")
		methods[path] = append(methods[path], method)
	}
	return methods
}

// Structural tests (the router's routes equal openapi.yaml), both ways.
func TestRoutesAreTheDocuments(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	var routed []string
	err := chi.Walk(h.server.Routes(), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		// Every method and every path below is answered alike; the document says so once.
		if strings.HasPrefix(route, verifyPath) && (method != http.MethodGet || route != verifyPath) {
			return nil
		}
		routed = append(routed, method+" "+route)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(routed)
	equalJSON(t, routed, documented(t))
	if len(routed) < 15 {
		t.Errorf("only %d routes: %v", len(routed), routed)
	}
}

// Contract, section 3: every route under /v1.0 is 401 bare and refuses another customer. A route that is added is tested
// here by being in the document.
func TestEveryRouteNeedsACredentialAndShowsOnlyItsCustomer(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	w := &fixture{own: h.newBelongings(), other: h.newBelongings()}
	w.caller.agent = h.newAgent(w.own.customer, auth.PermissionCustomerAdmin)
	_, key := h.storeKey(store.NewAccessKey{CustomerID: w.own.customer})
	tested := 0
	for _, operation := range documented(t) {
		method, path, _ := strings.Cut(operation, " ")
		if !strings.HasPrefix(path, "/v1.0/") {
			continue
		}
		tested++
		r := row{method: method, path: path, target: "-"}
		send := func(bearer string) response {
			w.caller.bearer = bearer
			return h.send(w.requestOf(r, w.other))
		}
		send("").refuses(401, "AUTHENTICATION_REQUIRED")
		send("vb_"+strings.Repeat("0", 32)).refuses(401, "INVALID_CREDENTIALS")
		for _, bearer := range []string{h.jwtFor(w.caller.agent), key} {
			got := send(bearer)
			switch {
			case r.names():
				got.refuses(403, "PERMISSION_DENIED")
			case got.code != 200 && got.code != 403: // which of them is the matrix's business
				t.Errorf("%s: %d %s", operation, got.code, got.raw)
			}
			for _, foreign := range []uuid.UUID{w.other.customer, w.other.agent, w.other.key, w.other.boundKey, w.other.account} {
				if strings.Contains(string(got.raw), foreign.String()) {
					t.Errorf("%s shows one customer something of another: %s", operation, got.raw)
				}
			}
		}
	}
	if tested < 27 {
		t.Errorf("only %d operations are under /v1.0", tested)
	}
	// The control: what was looked for above is there to be seen.
	own := string(h.get("/v1.0/accesskeys?agent_id="+w.other.agent.String(), h.acme.superJWT).wants(200).raw)
	for _, shown := range []uuid.UUID{w.other.customer, w.other.agent, w.other.boundKey} {
		if !strings.Contains(own, shown.String()) {
			t.Errorf("body %s", own)
		}
	}
}

// source parses the files that answer requests, without tests.
func source(t *testing.T) (files []*ast.File) {
	t.Helper()
	for _, pattern := range []string{"*.go", "../web/*.go", "../authn/*.go", "../forwardauth/*.go"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
	}
	return files
}

// Contract, section 1: reason is one of the codes on this page; new ones are UPPER_SNAKE and listed in api/openapi.yaml.
func TestReasonsAreTheDocuments(t *testing.T) {
	t.Parallel()
	var inCode []string
	for _, file := range source(t) {
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || !strings.HasPrefix(strings.ToLower(spec.Names[0].Name), "reason") {
				return true
			}
			literal, ok := spec.Values[0].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s is no literal", spec.Names[0].Name)
				return true
			}
			value, err := strconv.Unquote(literal.Value)
			if err != nil || strings.Trim(value, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
				t.Errorf("%s is %s", spec.Names[0].Name, literal.Value)
			}
			inCode = append(inCode, value)
			return true
		})
	}
	envelope := openAPI(t).Components.Schemas["Error"].Value.Properties["error"].Value
	var inDocument []string
	for _, reason := range envelope.Properties["reason"].Value.Enum {
		inDocument = append(inDocument, reason.(string))
	}
	slices.Sort(inCode)
	slices.Sort(inDocument)
	equalJSON(t, inCode, inDocument)
	for _, pinned := range []string{
		"ACCESSKEY_NOT_FOUND", "AUTHENTICATION_REQUIRED", "BODY_TOO_LARGE", "INVALID_ARGUMENT", "INVALID_CREDENTIALS", "INVALID_ID",
		"INVALID_JSON_BODY", "INVALID_REQUEST_PARAMETER", "METHOD_NOT_ALLOWED", "PERMISSION_DENIED", "RATE_LIMIT_EXCEEDED",
		"ROUTE_NOT_FOUND", "SERVICE_UNAVAILABLE",
	} {
		if !slices.Contains(inCode, pinned) {
			t.Errorf("the contract's reason %s is gone", pinned)
		}
	}
}

// Roles are one table in the code, in openapi.yaml and in the docs, with a test that they agree: the enum, its table, and the table of who
// may do what.
func TestRolesAreTheDocuments(t *testing.T) {
	t.Parallel()
	var inCode, inEnum []string
	for _, role := range auth.Roles() {
		inCode = append(inCode, string(role))
	}
	doc := openAPI(t)
	schema := doc.Components.Schemas["Role"].Value
	for _, role := range schema.Enum {
		inEnum = append(inEnum, role.(string))
	}
	slices.Sort(inCode)
	slices.Sort(inEnum)
	equalJSON(t, inEnum, inCode)
	for what, table := range map[string]struct {
		text   string
		column int
	}{"of roles": {schema.Description, 1}, "of permissions and roles": {doc.Info.Description, 2}} {
		var inTable []string
		for line := range strings.Lines(table.text) {
			cells := strings.Split(line, "|")
			if len(cells) <= table.column {
				continue
			}
			role := strings.Trim(cells[table.column], " `")
			if strings.HasSuffix(role, "_admin") || strings.HasSuffix(role, "_viewer") {
				inTable = append(inTable, role)
			}
		}
		slices.Sort(inTable)
		if !slices.Equal(inTable, inCode) {
			t.Errorf("the table %s has %v, want %v", what, inTable, inCode)
		}
	}
}

// ofOperation are the ends of the names that generators of clients and servers make of an operation's: LoginResponse, LoginParams,
// LoginJSONRequestBody, LoginRequestObject, Login200JSONResponse.
var ofOperation = regexp.MustCompile(`^(Response|Params|[A-Za-z]*Body|(Request|Response)Object|[1-5][0-9X]{2}.*|Default.*)$`)

// sharedNames are those of the document's components that a generator would use twice: for two components, or for one and an operation.
func sharedNames(components, operations []string) (shared []string) {
	seen := map[string]bool{}
	for _, name := range components {
		lower := strings.ToLower(name)
		if seen[lower] || slices.ContainsFunc(operations, func(operation string) bool {
			end, is := strings.CutPrefix(name, strings.ToUpper(operation[:1])+operation[1:])
			return is && ofOperation.MatchString(end)
		}) {
			shared = append(shared, name)
		}
		seen[lower] = true
	}
	return shared
}

// What oapi-codegen makes of a document with such a name does not compile; make e2e compiles it.
func TestGeneratedClientsHaveEachNameOnce(t *testing.T) {
	t.Parallel()
	doc := openAPI(t)
	components := slices.Concat(slices.Collect(maps.Keys(doc.Components.Schemas)), slices.Collect(maps.Keys(doc.Components.Parameters)),
		slices.Collect(maps.Keys(doc.Components.Responses)), slices.Collect(maps.Keys(doc.Components.RequestBodies)))
	var operations []string
	for _, item := range doc.Paths.Map() {
		for _, operation := range item.Operations() {
			operations = append(operations, operation.OperationID)
		}
	}
	if shared := sharedNames(components, operations); len(shared) != 0 {
		t.Errorf("rename %q", shared)
	}
	control := []string{"LoginResponse", "LoginParams", "LoginJSONRequestBody", "LoginResponseObject", "Login200JSONResponse", "accesskey"}
	if shared := sharedNames(append(components, control...), operations); !slices.Equal(shared, control) {
		t.Errorf("the control finds %q", shared)
	}
}

// Contract, section 1: token: ONLY in the answer to POST. The places where the wire can hold a secret are these and no others, in the
// document's schemas and in the structs that are encoded.
func TestOnlyTheseFieldsHoldSecrets(t *testing.T) {
	t.Parallel()
	secretName := func(name string) bool {
		return slices.ContainsFunc([]string{"token", "secret", "password", "hash", "credential", "jwt", "private"}, func(word string) bool {
			return strings.Contains(strings.ToLower(name), word)
		}) && name != "token_prefix" && name != "next_page_token" && name != "token_type"
	}
	var inDocument []string
	for name, schema := range openAPI(t).Components.Schemas {
		for property := range schema.Value.Properties {
			if secretName(property) {
				inDocument = append(inDocument, name+"."+property)
			}
		}
		free := schema.Value.AdditionalProperties.Has
		isRequest := strings.HasSuffix(name, "Request") || name == "Document"
		if schema.Value.Type.Is("object") && !isRequest && (free == nil || *free) {
			t.Errorf("schema %s may hold more than it says", name)
		}
	}
	slices.Sort(inDocument)
	equalJSON(t, inDocument, []string{
		"CompleteSignupRequest.temp_token", "CreateAgentRequest.password", "CreatedAccessKey.token", "Credentials.private_key",
		"LoginRequest.password", "LoginResult.token", "SetOwnPasswordRequest.old_password", "SetOwnPasswordRequest.password",
		"SetPasswordRequest.password", "SignupResult.temp_token",
	})

	var inCode []string
	for _, file := range source(t) {
		ast.Inspect(file, func(n ast.Node) bool {
			field, ok := n.(*ast.Field)
			if !ok || field.Tag == nil {
				return true
			}
			name, _, _ := strings.Cut(reflect.StructTag(strings.Trim(field.Tag.Value, "`")).Get("json"), ",")
			if secretName(name) {
				inCode = append(inCode, file.Name.Name+" "+name)
			}
			return true
		})
	}
	equalJSON(t, inCode, []string{"api token", "api token", "api private_key", "api temp_token"}) // accessKeyJSON's, login's, credentialsJSON's, signup's
}

// Contract, section 1: token: ONLY in the answer to POST; absent everywhere else, and never its hash: every route is asked.
func TestNoOtherAnswerHoldsTheToken(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	created := h.post("/v1.0/accesskeys", h.acme.adminJWT, `{"name":"n"}`).wants(200)
	token, _ := created.json()["token"].(string)
	id := created.json()["id"].(string)
	hash := h.text(`SELECT encode(token_sha256, 'hex') FROM accesskeys WHERE id = $1`, id)
	hash64 := h.text(`SELECT encode(token_sha256, 'base64') FROM accesskeys WHERE id = $1`, id)
	if !strings.Contains(string(created.raw), token[11:]) {
		t.Fatal("the control fails: the answer to POST does not hold the token")
	}
	operations := documented(t)
	slices.Reverse(operations) // DELETE comes last
	for _, operation := range operations {
		method, path, _ := strings.Cut(operation, " ")
		for _, bearer := range []string{token, h.acme.adminJWT} {
			got := h.send(request{method: method, path: strings.ReplaceAll(path, "{id}", id), header: bearing(bearer)})
			for _, forbidden := range []string{token[11:], hash, hash64} {
				if strings.Contains(string(got.raw), forbidden) {
					t.Errorf("%s: %s", operation, got.raw)
				}
			}
		}
	}
}
