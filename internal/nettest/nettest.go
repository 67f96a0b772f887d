// Package nettest gives a test a network namespace of its own.
package nettest

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// EnvRoot, set to 1 by make test, says that every test must run.
const EnvRoot = "NODEPROXY_TEST_ROOT"

// RequireRoot stops a test that was started without root. Under make test it
// fails: a test that did not run has shown nothing. By hand, without root, it
// is left out and says so, so that the pure tests of a package can be run.
func RequireRoot(t testing.TB) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv(EnvRoot) == "1":
		t.Fatal("this test needs root: run make test as root")
	default:
		t.Skip("this test needs root: run make test as root")
	}
}

// Enter moves the calling test to a new network namespace with lo up, and back
// when it ends. The goroutine stays locked to its thread meanwhile, so commands
// that it starts are in the namespace, but goroutines that it starts are not.
func Enter(t testing.TB) {
	t.Helper()
	RequireRoot(t)
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatalf("get network namespace: %v", err)
	}
	ns, err := netns.New() // unnamed: it is gone with its last user
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := netns.Set(before); err != nil {
			// The thread stays locked, so the runtime throws it away with the
			// goroutine instead of using it in the wrong namespace.
			t.Errorf("return to network namespace: %v", err)
			return
		}
		before.Close()
		runtime.UnlockOSThread()
	})
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatalf("find lo: %v", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatalf("set lo up: %v", err)
	}
}
