package source

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFilesAreFollowedWithoutInotify follows a file where the node has no instance of
// inotify left: it says so once, and takes in changes all the same.
func TestFilesAreFollowedWithoutInotify(t *testing.T) {
	const child = "NODEPROXY_TEST_NO_INOTIFY"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		// The limit is of a user namespace: that of a new one is nobody else's.
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := os.WriteFile("/proc/sys/user/max_inotify_instances", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "services.yaml")
	write(t, path, manifest("a"))
	f := follow(t, path)
	f.want("a")
	write(t, path, manifest("a", "b"))
	f.want("a", "b")
	f.logged("max_user_instances", 1)
}
