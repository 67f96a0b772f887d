package netnstests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// threads is the domain of this process's threaded cgroups. Places of a refNet
// are namespaces that threads of this process enter; the cgroup that socket
// programs look at can be a thread's own too, in a threaded subtree.
var threads struct {
	sync.Mutex
	dir, before string // the process's cgroup, and that where it was before
	users       int
}

// threadCgroup makes a threaded cgroup that is gone at the end of the test.
func threadCgroup(t *testing.T) string {
	t.Helper()
	threads.Lock()
	defer threads.Unlock()
	if threads.users++; threads.users == 1 {
		if err := enterThreadDomain(); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp(threads.dir, "threads-")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "cgroup.type"), []byte("threaded"), 0)
	}
	t.Cleanup(func() {
		if dir == "" {
			return
		}
		if err := errors.Join(removeCgroup(dir), leaveThreadDomain()); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatalf("make a threaded cgroup: %v", err)
	}
	return dir
}

// enterThreadDomain moves this process to a cgroup of its own, for only a
// cgroup without domains below can be the domain of threads.
func enterThreadDomain() error {
	var root string
	mounts, err := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" && root == "" {
			root = f[1]
		}
	}
	if err != nil || root == "" {
		return fmt.Errorf("find cgroup v2: %w", errors.Join(err, errors.ErrUnsupported))
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return fmt.Errorf("own cgroup: %w", err)
	}
	threads.before = root
	for line := range strings.Lines(string(own)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			threads.before = filepath.Join(root, rest)
		}
	}
	threads.dir = filepath.Join(root, fmt.Sprintf("nodeproxy-test-%d", os.Getpid()))
	if err := os.Mkdir(threads.dir, 0o755); err != nil {
		return fmt.Errorf("make a cgroup for this process: %w", err)
	}
	return moveTo(threads.dir)
}

func leaveThreadDomain() error {
	threads.Lock()
	defer threads.Unlock()
	if threads.users--; threads.users > 0 {
		return nil
	}
	return errors.Join(moveTo(threads.before), moveRest(threads.dir, threads.before), removeCgroup(threads.dir))
}

// moveRest moves what is left in a cgroup: children that this process has begun for
// other tests since it was there.
func moveRest(from, to string) error {
	left, err := os.ReadFile(filepath.Join(from, "cgroup.procs"))
	if err != nil {
		return fmt.Errorf("processes of a cgroup: %w", err)
	}
	for pid := range strings.Lines(string(left)) {
		err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(pid), 0)
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("move process %s to cgroup %s: %w", strings.TrimSpace(pid), to, err)
		}
	}
	return nil
}

// joinThreads moves the calling thread to a cgroup of the domain.
func joinThreads(cgroup string) error {
	return os.WriteFile(filepath.Join(cgroup, "cgroup.threads"), []byte(strconv.Itoa(unix.Gettid())), 0)
}

func moveTo(cgroup string) error {
	err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(unix.Getpid())), 0)
	if err != nil {
		return fmt.Errorf("move this process to cgroup %s: %w", cgroup, err)
	}
	return nil
}

// removeCgroup removes a cgroup once the last thread in it has ended.
func removeCgroup(dir string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := os.Remove(dir)
		if err == nil || !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}
