package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 looks for named namespaces.
const netnsDir = "/run/netns"

// netnsName is the name of a place's network namespace. Places are few and
// none ends in "-" and another's name, so no two labs can share a name.
func netnsName(lab, place string) string { return "np-" + lab + "-" + place }

// createNetns makes a named network namespace.
func createNetns(name string) error {
	if err := shareNetnsDir(); err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	return onNetnsThread(func() error {
		ns, err := netns.NewNamed(name) // enters it too
		if err != nil {
			return fmt.Errorf("create network namespace %s: %w", name, err)
		}
		return ns.Close()
	})
}

// shareNetnsDir makes netnsDir a shared mount of its own, as iproute2 does when it
// makes its first namespace (netns_add in ip/ipnetns.c), under the same lock. Else
// the first "ip netns add" while a lab is up would do it, over the names that
// are there: unmounted above, they are still in use below, and cannot be removed.
// For the same reason it is left alone where others' names are there already.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("make the directory of network namespaces: %w", err)
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return fmt.Errorf("open the directory of network namespaces: %w", err)
	}
	defer dir.Close() // gives the lock back
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", netnsDir, err)
	}
	err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // no mount yet
		if names, err := dir.Readdirnames(1); err == nil && len(names) > 0 {
			return nil
		}
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", netnsDir, err)
	}
	return nil
}

// deleteNetns removes the name of a network namespace, whatever is left of
// it, and reports whether there was anything. The kernel takes the namespace
// and its links down once no process is inside.
func deleteNetns(name string) (bool, error) {
	path := filepath.Join(netnsDir, name)
	// After a crash there may be a file that nothing is mounted on: EINVAL.
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return true, fmt.Errorf("unmount network namespace %s: %w", name, err)
	}
	err = os.Remove(path)
	if errors.Is(err, unix.EBUSY) {
		err = removeCovered(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("delete network namespace %s: %w", name, err)
	}
	return true, nil
}

// removeCovered removes the name of a namespace whose mount somebody has covered
// by mounting over netnsDir. It does so from mounts of its own, in which netnsDir
// is bare: a name that is removed there is unmounted everywhere.
func removeCovered(path string) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("unshare mounts: %w", err)
			}
			if err := unix.Mount("", "/", "none", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make mounts private: %w", err)
			}
			for unix.Unmount(netnsDir, unix.MNT_DETACH) == nil { // each that covers another
			}
			for unix.Unmount(path, unix.MNT_DETACH) == nil {
			}
			return os.Remove(path)
		}()
	}()
	return <-result
}

// inNetns runs fn on this goroutine with its OS thread in the namespace.
func inNetns(name string, fn func() error) error {
	return onNetnsThread(func() error {
		ns, err := netns.GetFromName(name)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", name, err)
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", name, err)
		}
		return fn()
	})
}

// onNetnsThread runs fn, which may change the thread's network namespace, and
// changes it back. A thread that cannot be brought back stays locked to the
// goroutine, with which the runtime will destroy it.
func onNetnsThread(fn func() error) (err error) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer func() {
		if back := netns.Set(home); back != nil {
			err = errors.Join(err, fmt.Errorf("return to own network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		home.Close()
	}()
	return fn()
}
