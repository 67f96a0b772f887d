// Package repo holds the rules of this repository as tests.
package repo

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/nodeproxy/nodeproxy"

// allowed lists, for each package, what of ours it may import. A package that
// is not listed may import anything but cmd. Tests are not bound by it.
var allowed = map[string][]string{
	"service":                 {},
	"source":                  {"service"},
	"dataplane":               {"service", "dataplane/netevents"},
	"dataplane/command":       {},
	"dataplane/netevents":     {},
	"dataplane/view":          {"service"},
	"dataplane/iptables":      {"service", "dataplane/command", "dataplane/view", "dataplane/netevents", "dataplane/iptables/walk"},
	"dataplane/iptables/walk": {},
	"dataplane/loopback":      {"dataplane", "service"},
	"dataplane/ebpf":          {"service", "dataplane/command", "dataplane/view", "dataplane/netevents"},
	"lab":                     {"lab/echo", "lab/manifest"},
	"lab/echo":                {},
	"lab/manifest":            {},
	"lab/controlplane":        {"lab", "deploy"},
	"bench":                   {"bench/load", "lab", "lab/controlplane", "lab/echo", "lab/manifest"},
	"bench/load":              {},
	"deploy":                  {},
	"deploy/seccomp":          {},
	"forward":                 {},
	"metrics":                 {"service"},
	"admin":                   {"service", "dataplane/view"},
	"health":                  {"service"},
}

func command(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return out
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Data flows one way: see ARCHITECTURE.md.
func TestImportsFollowTheArrows(t *testing.T) {
	out := command(t, "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		pkg := strings.TrimPrefix(words[0], module+"/")
		seen[pkg] = true
		rule, bound := allowed[pkg]
		for _, path := range words[1:] {
			dep, ours := strings.CutPrefix(path, module+"/")
			switch {
			case ours && strings.HasPrefix(dep, "cmd/"):
				t.Errorf("%s imports %s: nothing imports a command", pkg, dep)
			case ours && bound && !slices.Contains(rule, dep):
				t.Errorf("%s imports %s, against the arrows of ARCHITECTURE.md", pkg, dep)
			case pkg == "service" && strings.Contains(path, "."):
				t.Errorf("service imports %s: only the standard library is allowed there", path)
			}
		}
	}
	for pkg := range allowed {
		if !seen[pkg] && pkg != "dataplane/ebpf" {
			t.Errorf("package %s is named in this test but does not exist", pkg)
		}
	}
}

// files returns what git tracks, by name.
func files(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimRight(string(command(t, "git", "ls-files", "-z")), "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(root(t), name))
		if os.IsNotExist(err) {
			continue // deleted, not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		out[name] = data
	}
	return out
}

// When a file gets long, a concept is missing.
func TestFilesAreShort(t *testing.T) {
	limits := map[string]int{".go": 500, ".c": 300, ".h": 300}
	for name, data := range files(t) {
		limit := limits[filepath.Ext(name)]
		if limit == 0 || strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, "_bpfel.go") {
			continue
		}
		if n := bytes.Count(data, []byte("\n")); n > limit {
			t.Errorf("%s has %d lines, more than %d", name, n, limit)
		}
	}
}

// The repository must say nothing of the machine that it was written on.
func TestNothingNamesABuildMachine(t *testing.T) {
	// In pieces, so that this file does not find itself.
	for _, word := range []string{"/wo" + "rk/main", "/wo" + "rk/wt", "/wo" + "rk/shared", "/ro" + "ot/go", "proxy." + "golang.org", "deb." + "debian.org", "registry." + "npmjs.org"} {
		for name, data := range files(t) {
			if filepath.Base(name) != "go.sum" && bytes.Contains(data, []byte(word)) {
				t.Errorf("%s contains %s", name, word)
			}
		}
	}
}
