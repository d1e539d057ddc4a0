package internal_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Let agents' bits and accounts' roles meet in one permission model: it is auth's, and what decides about a request asks for rights. A bit
// or a role by its name, in a handler or in the store, would be a second model.
func TestHandlersAskForRightsNotForBitsOrRoles(t *testing.T) {
	t.Parallel()
	named := map[string]int{}
	for _, room := range []string{"api", "store", "auth"} {
		files, err := filepath.Glob(room + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", room, len(files), err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			for _, found := range namedGrants(t, name, nil) {
				named[filepath.ToSlash(name)]++
				if room != "auth" {
					t.Errorf("%s names %s", name, found)
				}
			}
		}
	}
	// Control: where the model is, they are seen; nowhere else in auth does one decide.
	if named["auth/permission.go"] < 10 {
		t.Errorf("auth/permission.go names %d bits and roles: the test is blind", named["auth/permission.go"])
	}
	delete(named, "auth/permission.go")
	delete(named, "auth/principal.go") // which shows the bit that a key's roles amount to
	if len(named) != 0 {
		t.Errorf("bits and roles are named in %v too", named)
	}
	got := namedGrants(t, "made-up.go", `package p
		func f(p auth.Principal) bool {
			return p.Permission&auth.PermissionCustomerAdmin != 0 || slices.Contains(p.Roles, string(auth.RoleAgentAdmin)) ||
				p.May(auth.ReadAgents) || p.Permission == auth.PermissionAll || has(auth.Roles(), "agent_viewer")
		}`)
	if want := []string{"PermissionCustomerAdmin", "RoleAgentAdmin", `"agent_viewer"`}; !slices.Equal(got, want) {
		t.Errorf("in the made-up file are %v, want %v", got, want)
	}
}

// namedGrants are the mentions of a bit or a role by its name. PermissionAll and PermissionNone bound what a number can be.
func namedGrants(t *testing.T, name string, source any) (found []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	roles := []string{`"accesskey_admin"`, `"accesskey_viewer"`, `"agent_admin"`, `"agent_viewer"`, `"customer_admin"`}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Ident:
			bit, isBit := strings.CutPrefix(n.Name, "Permission")
			role, isRole := strings.CutPrefix(n.Name, "Role")
			isBit = isBit && (strings.HasPrefix(bit, "Customer") || strings.HasPrefix(bit, "Project"))
			isRole = isRole && slices.ContainsFunc([]string{"AccessKey", "Agent", "Customer"}, func(of string) bool { return strings.HasPrefix(role, of) })
			if isBit || isRole {
				found = append(found, n.Name)
			}
		case *ast.BasicLit:
			if slices.Contains(roles, n.Value) {
				found = append(found, n.Value)
			}
		}
		return true
	})
	return found
}
