package test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kms-plugin.io/test/lack"
)

// maySkip are the tests that end by a plain Skip, also in .ci/run: what they lack
// they lack in every run of that kind, and another run has it.
var maySkip = map[string]string{
	"test/chaos/outages_test.go TestSoak":                   "make soak runs it",
	"internal/custody/suite_test.go TestSuiteIsSwitched":    "of two suites there is one under fips140=only; make test has both",
	"pkg/keys/localkek/localkek_test.go TestSuitesAreApart": "the same",
	"pkg/keys/localkek/memory_test.go newScanner":           "the same",
	"test/lack/lack.go Skip":                                "it is what the others call",
}

// A test that is skipped where nobody looks proves nothing: what it lacks is said by
// lack.Skip, which fails in .ci/run, or here.
func TestNothingIsSkippedSilently(t *testing.T) {
	found := map[string]bool{}
	for _, path := range sources(t) {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			if skips(decl) {
				found[strings.TrimPrefix(path, "../")+" "+nameOf(decl)] = true
			}
		}
	}
	for where := range found {
		if maySkip[where] == "" {
			t.Errorf("%s skips a test: call lack.Skip, or say in maySkip why .ci/run loses nothing", where)
		}
	}
	for where := range maySkip {
		if !found[where] {
			t.Errorf("%s is in maySkip and skips nothing", where)
		}
	}
}

// sources are files that import package testing: our own only, in all modules.
func sources(t *testing.T) (out []string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), "\"testing\"\n") {
			out = append(out, path)
		}
		return err
	})
	if err != nil || len(out) < 100 {
		t.Fatalf("%d files with tests, %v", len(out), err)
	}
	return out
}

// nameOf a function, or of all that is declared at the top beside functions.
func nameOf(d ast.Decl) string {
	if f, ok := d.(*ast.FuncDecl); ok {
		return f.Name.Name
	}
	return "(variables)"
}

// skips: a declaration calls Skip, Skipf or SkipNow, but that of a package.
func skips(d ast.Decl) (found bool) {
	ast.Inspect(d, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !strings.HasPrefix(method.Sel.Name, "Skip") {
			return true
		}
		pkg, _ := method.X.(*ast.Ident)
		found = found || pkg == nil || pkg.Name != "lack" && pkg.Name != "preflight"
		return true
	})
	return found
}

// .ci/run itself says that every test must run.
func TestCIRunsEveryTest(t *testing.T) {
	data, err := os.ReadFile("../.ci/run")
	if err != nil {
		t.Fatal(err)
	}
	set := regexp.MustCompile(fmt.Sprintf(`(?m)^export %s=1$`, lack.Variable)).FindIndex(data)
	first := regexp.MustCompile(`(?m)^make `).FindIndex(data)
	if set == nil || first == nil || set[0] > first[0] {
		t.Errorf(".ci/run must export %s=1 before its first make", lack.Variable)
	}
}
