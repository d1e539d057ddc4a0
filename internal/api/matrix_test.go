package api_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"accesskeys/internal/auth"
)

// matrix is what every route answers to every kind of caller. A cell has three letters: where what is asked for belongs
// to the caller's customer, to another customer, and to nobody.
//
//	y 200   n 403   f 404   . the request names nothing that could be somebody else's
//
// The target is what is asked for where that makes a difference:
//
//	admin, super            an agent who is CustomerAdmin, ProjectSuperAdmin
//	to-admin, to-super      an ordinary agent, who would become one
//	of, of-admin, of-super  a key that is bound to an ordinary agent, to such an admin, to such a super admin
//	mine                    a key that is bound to the caller, where that acts for an agent
//	-                       else: an ordinary agent, a customer-wide key, the customer, a service account
//
// The callers are agents with the permission ProjectSuperAdmin (su), CustomerAdmin (ad), CustomerManager (ma),
// CustomerAgent (ag) and none (a0); a customer-wide key (ck), a key that is bound to an admin (ak) and to an ordinary
// agent (gk); service accounts with the role customer_admin (CA), accesskey_admin (KA), accesskey_viewer (KV),
// agent_admin (AA), agent_viewer (AV) and none (N0), and a key that one with accesskey_admin made (sk).
const matrix = `
route                                            target   su  ad  ma  ag  a0  ck  ak  gk  CA  KA  KV  AA  AV  N0  sk
GET /v1.0/me                                     -        y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y..
PUT /v1.0/me/password                            -        y.. y.. y.. y.. y.. n.. n.. n.. n.. n.. n.. n.. n.. n.. n..
GET /v1.0/customer                               -        y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y..
GET /v1.0/customers                              -        y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y.. y..
POST /v1.0/customers                             -        y.. n.. n.. n.. n.. n.. n.. n.. n.. n.. n.. n.. n.. n.. n..
GET /v1.0/customers/{id}                         -        yyf ynn ynn ynn ynn ynn ynn ynn ynn ynn ynn ynn ynn ynn ynn
PUT /v1.0/customers/{id}                         -        yyf nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn
DELETE /v1.0/customers/{id}                      -        yyf nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn
GET /v1.0/agents                                 -        yyf ynn nnn nnn nnn ynn ynn nnn ynn nnn nnn ynn ynn nnn nnn
POST /v1.0/agents                                -        yyf ynn nnn nnn nnn ynn ynn nnn ynn nnn nnn ynn nnn nnn nnn
POST /v1.0/agents                                to-admin yyf ynn nnn nnn nnn ynn ynn nnn ynn nnn nnn nnn nnn nnn nnn
POST /v1.0/agents                                to-super yyf nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn
GET /v1.0/agents/{id}                            -        yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn ynf ynf nnn nnn
GET /v1.0/agents/{id}                            super    yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn ynf ynf nnn nnn
PUT /v1.0/agents/{id}                            -        yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn ynf nnn nnn nnn
PUT /v1.0/agents/{id}                            admin    yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn nnf nnn nnn nnn
PUT /v1.0/agents/{id}                            super    yyf nnf nnn nnn nnn nnf nnf nnn nnf nnn nnn nnf nnn nnn nnn
DELETE /v1.0/agents/{id}                         -        yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn ynf nnn nnn nnn
DELETE /v1.0/agents/{id}                         admin    yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn nnf nnn nnn nnn
DELETE /v1.0/agents/{id}                         super    yyf nnf nnn nnn nnn nnf nnf nnn nnf nnn nnn nnf nnn nnn nnn
PUT /v1.0/agents/{id}/permission                 -        yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn ynf nnn nnn nnn
PUT /v1.0/agents/{id}/permission                 admin    yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn nnf nnn nnn nnn
PUT /v1.0/agents/{id}/permission                 super    yyf nnf nnn nnn nnn nnf nnf nnn nnf nnn nnn nnf nnn nnn nnn
PUT /v1.0/agents/{id}/permission                 to-admin yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn nnn nnn nnn nnn
PUT /v1.0/agents/{id}/permission                 to-super yyf nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn nnn
PUT /v1.0/agents/{id}/password                   -        yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn ynf nnn nnn nnn
PUT /v1.0/agents/{id}/password                   admin    yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn nnf nnn nnn nnn
PUT /v1.0/agents/{id}/password                   super    yyf nnf nnn nnn nnn nnf nnf nnn nnf nnn nnn nnf nnn nnn nnn
GET /v1.0/accesskeys                             -        y.. y.. n.. n.. n.. y.. y.. n.. y.. y.. y.. n.. n.. n.. y..
GET /v1.0/accesskeys                             of       yyf ynf nnn nnn nnn ynf ynf nnn ynf ynf ynf nnn nnn nnn ynf
GET /v1.0/accesskeys                             mine     y.. y.. y.. y.. y.. ... y.. y.. ... ... ... ... ... ... ...
POST /v1.0/accesskeys                            -        y.. y.. n.. n.. n.. y.. y.. n.. y.. y.. n.. n.. n.. n.. y..
POST /v1.0/accesskeys                            of       yyf ynf nnn nnn nnn ynf ynf nnn ynf ynf nnn nnn nnn nnn ynf
POST /v1.0/accesskeys                            of-admin yyf ynf nnn nnn nnn ynf ynf nnn ynf nnf nnn nnn nnn nnn nnf
POST /v1.0/accesskeys                            of-super yyf nnf nnn nnn nnn nnf nnf nnn nnf nnf nnn nnn nnn nnn nnf
POST /v1.0/accesskeys                            mine     y.. y.. y.. y.. y.. ... y.. y.. ... ... ... ... ... ... ...
GET /v1.0/accesskeys/{id}                        -        yyf ynf nnn nnn nnn ynf ynf nnn ynf ynf ynf nnn nnn nnn ynf
GET /v1.0/accesskeys/{id}                        of       yyf ynf nnn nnn nnn ynf ynf nnn ynf ynf ynf nnn nnn nnn ynf
GET /v1.0/accesskeys/{id}                        mine     y.. y.. y.. y.. y.. ... y.. y.. ... ... ... ... ... ... ...
PUT /v1.0/accesskeys/{id}                        -        yyf ynf nnn nnn nnn ynf ynf nnn ynf ynf nnn nnn nnn nnn ynf
PUT /v1.0/accesskeys/{id}                        of       yyf ynf nnn nnn nnn ynf ynf nnn ynf ynf nnn nnn nnn nnn ynf
PUT /v1.0/accesskeys/{id}                        mine     y.. y.. y.. y.. y.. ... y.. y.. ... ... ... ... ... ... ...
DELETE /v1.0/accesskeys/{id}                     -        yyf ynf nnn nnn nnn ynf ynf nnn ynf ynf nnn nnn nnn nnn ynf
DELETE /v1.0/accesskeys/{id}                     of       yyf ynf nnn nnn nnn ynf ynf nnn ynf ynf nnn nnn nnn nnn ynf
DELETE /v1.0/accesskeys/{id}                     mine     y.. y.. y.. y.. y.. ... y.. y.. ... ... ... ... ... ... ...
GET /v1.0/service_accounts                       -        y.. y.. n.. n.. n.. y.. y.. n.. y.. n.. n.. n.. n.. n.. n..
POST /v1.0/service_accounts                      -        y.. y.. n.. n.. n.. y.. y.. n.. y.. n.. n.. n.. n.. n.. n..
GET /v1.0/service_accounts/{id}                  -        yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn nnn nnn nnn nnn
PUT /v1.0/service_accounts/{id}                  -        yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn nnn nnn nnn nnn
DELETE /v1.0/service_accounts/{id}               -        yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn nnn nnn nnn nnn
GET /v1.0/service_accounts/{id}/keys             -        yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn nnn nnn nnn nnn
POST /v1.0/service_accounts/{id}/keys            -        yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn nnn nnn nnn nnn
DELETE /v1.0/service_accounts/{id}/keys/{key_id} -        yyf ynf nnn nnn nnn ynf ynf nnn ynf nnn nnn nnn nnn nnn nnn
`

// row is a line of the matrix.
type row struct {
	method, path, target string
	cells                map[string]string // by the code of the identity
}

func (r row) String() string { return r.method + " " + r.path + " " + r.target }

// rowsOf reads a matrix, and tells what is wrong with it: cells that are missing, too many or unreadable, routes and
// identities that it does not have.
func rowsOf(text string, routes, codes []string) (rows []row, wrong []string) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	header := strings.Fields(lines[0])[2:]
	for _, code := range codes {
		if !slices.Contains(header, code) {
			wrong = append(wrong, "no column for "+code)
		}
	}
	for _, code := range header {
		if !slices.Contains(codes, code) {
			wrong = append(wrong, "a column for nobody: "+code)
		}
	}
	var described []string
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		r := row{method: fields[0], path: fields[1], target: fields[2], cells: map[string]string{}}
		for i, cell := range fields[3:] {
			if len(cell) != 3 || strings.Trim(cell, "ynf.") != "" || i >= len(header) {
				wrong = append(wrong, r.String()+": a cell "+cell)
				continue
			}
			r.cells[header[i]] = cell
		}
		if len(r.cells) != len(header) {
			wrong = append(wrong, r.String()+": a cell is missing")
		}
		rows = append(rows, r)
		described = append(described, r.method+" "+r.path)
	}
	for _, route := range routes {
		if !slices.Contains(described, route) {
			wrong = append(wrong, "no row for "+route)
		}
	}
	for _, route := range described {
		if !slices.Contains(routes, route) {
			wrong = append(wrong, "a row for no route: "+route)
		}
	}
	return rows, wrong
}

// names tells whether a row's request names something that could belong to somebody else.
func (r row) names() bool {
	named := strings.Contains(r.path, "{id}") || strings.HasPrefix(r.target, "of") || strings.HasSuffix(r.path, "/agents")
	return named && r.target != "mine"
}

// routesOf are the server's routes that ask for a credential.
func (h *harness) routesOf() (routes []string) {
	h.t.Helper()
	err := chi.Walk(h.server.Routes(), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if strings.HasPrefix(route, "/v1.0/") {
			routes = append(routes, method+" "+route)
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return routes
}

func codes() (all []string) {
	for _, i := range identities() {
		all = append(all, i.code)
	}
	return all
}

// As one matrix (route x identity x tenant) that fails on a missing cell.
func TestMatrixHasACellForEveryRouteCallerAndTenant(t *testing.T) {
	t.Parallel()
	routes := newHarness(t).routesOf()
	rows, wrong := rowsOf(matrix, routes, codes())
	for _, w := range wrong {
		t.Error(w)
	}
	actsForAnAgent := []string{"su", "ad", "ma", "ag", "a0", "ak", "gk"}
	seen := map[string]bool{}
	for _, r := range rows {
		if seen[r.String()] {
			t.Errorf("two rows %s", r)
		}
		seen[r.String()] = true
		for code, cell := range r.cells {
			unasked := r.target == "mine" && !slices.Contains(actsForAnAgent, code)
			if (cell[0] == '.') != unasked || (cell[1] == '.') == r.names() || (cell[2] == '.') == r.names() {
				t.Errorf("%s, %s: %s leaves out what can be asked for", r, code, cell)
			}
		}
	}
	if len(rows) < 40 || len(routes) < 27 {
		t.Errorf("only %d rows for %d routes", len(rows), len(routes))
	}

	// The control: each thing that may be forgotten is noticed.
	line := strings.Index(matrix, "GET /v1.0/agents/{id} ")
	for what, text := range map[string]string{
		"no row for GET /v1.0/me":    strings.Replace(matrix, "GET /v1.0/me ", "GET /v1.0/us ", 1),
		"a row for no route: GET":    strings.Replace(matrix, "GET /v1.0/me ", "GET /v1.0/us ", 1),
		"no column for gk":           strings.Replace(matrix, " gk ", " kg ", 1),
		"a column for nobody: kg":    strings.Replace(matrix, " gk ", " kg ", 1),
		": a cell is missing":        matrix[:line] + strings.Replace(matrix[line:], " ynf", "", 1),
		": a cell yn":                matrix[:line] + strings.Replace(matrix[line:], " ynf", " yn ", 1),
		"no row for PUT /v1.0/sea":   matrix,
		"no column for a new caller": matrix,
	} {
		_, wrong := rowsOf(text, append(slices.Clone(routes), "PUT /v1.0/sea"), append(codes(), "a new caller"))
		if !slices.ContainsFunc(wrong, func(w string) bool { return strings.Contains(w, what) }) {
			t.Errorf("%q is not noticed: %v", what, wrong)
		}
	}
}

// Every role that there is has a column.
func TestMatrixHasEveryRole(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	var all, seen []any
	for _, i := range identities() {
		c := i.make(h, h.newBelongings().customer)
		roles, _ := h.get("/v1.0/me", c.bearer).wants(http.StatusOK).json()["roles"].([]any)
		seen = append(seen, roles...)
	}
	for _, role := range auth.Roles() {
		all = append(all, string(role))
	}
	equalJSON(t, seen, all)
}

// Every cell of the matrix is asked. What is refused changes nothing, and shows nothing of the other customer.
func TestEveryCellOfTheMatrixIsAnsweredAsItSays(t *testing.T) {
	t.Parallel()
	for _, i := range identities() {
		t.Run(i.code, func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			rows, _ := rowsOf(matrix, nil, codes())
			w := h.newFixture(i)
			before := h.contents()
			for _, r := range rows {
				for at, tenant := range []string{"own", "other", "absent"} {
					letter := r.cells[i.code][at]
					if letter == '.' {
						continue
					}
					b := []belongings{w.own, w.other, absent()}[at]
					got := h.send(w.requestOf(r, b))
					if !answers(got, letter) {
						t.Errorf("%s of %s tenant: %d, want %c; body %s", r, tenant, got.code, letter, got.raw)
					}
					changed := h.contents() != before
					if changes := got.code == 200 && r.method != http.MethodGet; changed != changes {
						t.Errorf("%s of %s tenant: %d, and the database has changed: %v", r, tenant, got.code, changed)
					}
					if got.code != 200 && tenant == "other" || got.code == 200 && i.code != "su" {
						if strings.Contains(string(got.raw), w.other.customer.String()) {
							t.Errorf("%s of %s tenant shows the other customer: %s", r, tenant, got.raw)
						}
					}
					if changed {
						w = h.newFixture(i)
						before = h.contents()
					}
				}
			}
		})
	}
}

// answers tells whether an answer is what a letter of the matrix stands for.
func answers(got response, letter byte) bool {
	if letter == 'y' {
		return got.code == 200
	}
	reason, _ := got.failure()["reason"].(string)
	switch letter {
	case 'n':
		return got.code == 403 && reason == "PERMISSION_DENIED"
	case 'f':
		return got.code == 404 && strings.HasSuffix(reason, "_NOT_FOUND") && reason != "ROUTE_NOT_FOUND"
	default:
		return false
	}
}
