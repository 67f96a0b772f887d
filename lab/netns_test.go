package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The name of a namespace can be removed, whatever iproute2 does to the directory
// of names after it was made, and also where that hides the names.
func TestNamesAreRemovedUnderAnotherMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	for name, cover := range map[string]func() error{
		"ip netns add": func() error { return nil },
		"mounted over": func() error { return unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, "") },
	} {
		t.Run(name, func(t *testing.T) {
			ours, others := netnsName("covered", "x"), "np-covered-other"
			if err := createNetns(ours); err != nil {
				t.Fatal(err)
			}
			if err := cover(); err != nil {
				t.Fatal(err)
			}
			if name == "mounted over" {
				defer unix.Unmount(netnsDir, unix.MNT_DETACH)
			}
			if out, err := exec.Command("ip", "netns", "add", others).CombinedOutput(); err != nil {
				t.Fatalf("ip netns add: %v: %s", err, out)
			}
			defer exec.Command("ip", "netns", "delete", others).Run()
			if found, err := deleteNetns(ours); !found || err != nil {
				t.Errorf("found %t, error %v", found, err)
			}
			if _, err := os.Lstat(filepath.Join(netnsDir, ours)); !os.IsNotExist(err) {
				t.Errorf("the name is still there: %v", err)
			}
		})
	}
}

// Where nobody has made the directory of names a mount, a lab does it: what
// iproute2 mounts later hides nothing.
func TestDirectoryOfNamesIsAMountOfItsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	if err := shareNetnsDir(); err != nil {
		t.Fatal(err)
	}
	var dir, run unix.Statx_t
	for path, into := range map[string]*unix.Statx_t{netnsDir: &dir, filepath.Dir(netnsDir): &run} {
		if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, into); err != nil {
			t.Fatal(err)
		}
	}
	if dir.Mnt_id == run.Mnt_id {
		t.Errorf("%s is no mount", netnsDir)
	}
}
