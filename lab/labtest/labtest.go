// Package labtest gives tests a lab of their own.
//
// A test package that uses it has
//
//	func TestMain(m *testing.M) { labtest.Main(m) }
//
// which also fails if anything of the labs is left on the machine at the end.
package labtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeproxy/nodeproxy/internal/nettest"
	"github.com/nodeproxy/nodeproxy/lab"
)

// program is the package of the command that labs run.
const program = "github.com/nodeproxy/nodeproxy/cmd/nodeproxy"

var (
	tmp      string // of this test binary, made by Main
	labCount atomic.Int64
)

// Main runs the tests, removes what the functions here have made and checks
// that nothing else is left; see [Traces].
func Main(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "nodeproxy-labtest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make temporary directory for tests:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // a test may run the program as somebody else
		fmt.Fprintln(os.Stderr, "open temporary directory for tests:", err)
		return 1
	}
	tmp = dir
	before, err := Traces()
	if err != nil {
		fmt.Fprintln(os.Stderr, "look for traces of labs:", err)
		return 1
	}
	code := m.Run()
	after, err := Traces()
	if err != nil || !slices.Equal(before, after) {
		fmt.Fprintf(os.Stderr, "the tests left traces on the machine (-before +after): error %v\n%s", err, cmp.Diff(before, after, cmpopts.EquateEmpty()))
		return 1
	}
	return code
}

var build = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("NODEPROXY_BINARY"); path != "" {
		return path, nil
	}
	path := filepath.Join(tmp, "nodeproxy")
	output, err := exec.Command("go", "build", "-o", path, program).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build %s: %w\n%s", program, err, output)
	}
	return path, nil
})

// Binary returns the path of a nodeproxy program, which it builds at the first
// call. The environment variable NODEPROXY_BINARY names one to take instead.
func Binary(tb testing.TB) string {
	tb.Helper()
	if tmp == "" {
		tb.Fatal("labtest: TestMain of this package does not call labtest.Main")
	}
	path, err := build()
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// RequireRoot is [nettest.RequireRoot].
func RequireRoot(tb testing.TB) {
	tb.Helper()
	nettest.RequireRoot(tb)
}

// Name returns the name of a lab that no other test has, in this process or
// another.
func Name() string { return fmt.Sprintf("t%d-%d", os.Getpid(), labCount.Add(1)) }

// Up builds a lab for the test and takes it down when the test ends. Where
// they are empty, opts get a unique name and the program under test. If the
// test fails, the agents' logs are shown.
func Up(tb testing.TB, opts lab.Options) *lab.Lab {
	tb.Helper()
	RequireRoot(tb)
	if opts.Name == "" {
		opts.Name = Name()
	}
	if opts.Binary == "" {
		opts.Binary = Binary(tb)
	}
	l, err := lab.Up(tb.Context(), opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			for _, node := range lab.PlacesOf(lab.Node) {
				if log := l.AgentLog(node.Name); log != "" {
					tb.Logf("log of the agent on %s:\n%s", node.Name, log)
				}
			}
		}
		if err := l.Down(); err != nil {
			tb.Error(err)
		}
	})
	return l
}
