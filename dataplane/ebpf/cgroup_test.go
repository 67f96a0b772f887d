package ebpf

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCgroupComesAndGoes has the mount go and come back by which the agent knows its
// cgroup, and then the cgroup itself removed and made anew. The programs follow, and what
// cannot be followed is said once.
func TestCgroupComesAndGoes(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	cg, mount := cgroup(t), t.TempDir()
	remount := func() {
		if err := unix.Mount("none", mount, "cgroup2", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount()
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	var log strings.Builder // of this goroutine's syncs
	d := n.start(t, Options{CgroupPath: filepath.Join(mount, filepath.Base(cg)), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	table := n.table(both(svc{name: "s", backends: to(podA, "8080")})...)
	translates := func() error {
		before := d.metric(t, bpfReasonREASON_SOCKET_TRANSLATED)
		if _, err := askInCgroup(t, n.podB, cg, "tcp4", join(vip[0], "80")); err != nil {
			return err
		}
		if d.metric(t, bpfReasonREASON_SOCKET_TRANSLATED) == before {
			return errors.New("not translated by the socket path")
		}
		return nil
	}
	syncs := func(when, says string, times int) {
		t.Helper()
		for range 2 {
			syncAll(t, d, table)
		}
		if err := translates(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if got := strings.Count(log.String(), says); got != times {
			t.Errorf("%s: the log says %d times %q, want %d:\n%s", when, got, says, times, &log)
		}
	}
	syncs("at first", "not to be seen", 0)
	if err := unix.Unmount(mount, 0); err != nil {
		t.Fatal(err)
	}
	syncs("unmounted", "not to be seen", 1)
	remount()
	syncs("mounted again", "is there again", 1)
	id, err := d.cgroupID()
	if err != nil {
		t.Fatal(err)
	}
	for range 50 { // the last process may still be on its way out
		if err = os.Remove(cg); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err = errors.Join(err, os.Mkdir(cg, 0o755)); err != nil {
		t.Fatal(err)
	}
	syncs("made anew", "repaired", 1)
	if now, err := d.cgroupID(); err != nil || now == id {
		t.Errorf("the cgroup's id is %d as before, or not known: %v", now, err)
	}
}
