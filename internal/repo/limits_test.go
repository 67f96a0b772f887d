package repo

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unlimited are directories whose programs run for a test or a demonstration, not on a
// node.
var unlimited = []string{"lab", "bench", "netns-tests", "internal"}

// Every command that the agent or a tool of a node starts has a deadline and a WaitDelay,
// and every server of HTTP limits for headers and idle connections: no child and no
// client can hold up what waits for it.
func TestCommandsAndServersHaveLimits(t *testing.T) {
	commands, servers := 0, 0
	for _, path := range strings.Fields(string(command(t, "git", "ls-files", "*.go"))) {
		top, _, _ := strings.Cut(path, "/")
		if strings.HasSuffix(path, "_test.go") || strings.Contains(strings.Join(unlimited, " ")+" ", top+" ") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root(t), path))
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, text, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			body := string(text[fset.Position(fn.Pos()).Offset:fset.Position(fn.End()).Offset])
			if strings.Contains(body, "exec.Command(") {
				t.Errorf("%s: %s starts a command without a context", path, fn.Name.Name)
			}
			if strings.Contains(body, "exec.CommandContext(") {
				commands++
				if !strings.Contains(body, "context.WithTimeout") || !strings.Contains(body, ".WaitDelay = ") || !strings.Contains(body, ".Cancel = ") {
					t.Errorf("%s: %s starts a command without a deadline, a WaitDelay, or an end of its children", path, fn.Name.Name)
				}
			}
			if strings.Contains(body, "http.Server{") {
				servers++
				if !strings.Contains(body, "ReadHeaderTimeout: ") || !strings.Contains(body, "IdleTimeout: ") {
					t.Errorf("%s: %s makes a server without limits for headers and idle connections", path, fn.Name.Name)
				}
			}
			for _, call := range []string{"http.ListenAndServe", "http.Serve("} {
				if strings.Contains(body, call) {
					t.Errorf("%s: %s serves without limits", path, fn.Name.Name)
				}
			}
		}
	}
	if commands < 2 || servers < 3 {
		t.Errorf("%d commands and %d servers were found", commands, servers)
	}
}
