package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// killTimeout bounds how long killed processes may take to be gone.
const killTimeout = 10 * time.Second

// cgroupRoot returns where cgroup v2 is mounted.
func cgroupRoot() (string, error) {
	f, err := os.Open("/proc/mounts")
	if err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	defer f.Close()
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	if err := scanner.Err(); err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	return "", errors.New("find cgroup v2: not mounted; run " +
		"`mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`, " +
		"or boot with systemd.unified_cgroup_hierarchy=1")
}

// cgroupName is the top directory of a lab's subtree.
func cgroupName(lab string) string { return "nodeproxy-lab-" + lab }

// makeCgroups makes the directories of all places.
func makeCgroups(top string) error {
	for _, p := range places {
		if err := os.MkdirAll(filepath.Join(top, p.cgroup()), 0o755); err != nil {
			return fmt.Errorf("create cgroup of %s: %w", p.Name, err)
		}
	}
	return nil
}

// removeCgroups kills every process in the subtree, waits until they are gone
// and removes the directories. It reports whether there was a subtree.
func removeCgroups(top string) (bool, error) {
	if _, err := os.Stat(top); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err := os.WriteFile(filepath.Join(top, "cgroup.kill"), []byte("1"), 0); err != nil {
		return true, fmt.Errorf("kill processes of cgroup %s: %w", top, err)
	}
	if err := waitEmpty(top); err != nil {
		return true, err
	}
	return true, removeTree(top)
}

func waitEmpty(cgroup string) error {
	for deadline := time.Now().Add(killTimeout); ; time.Sleep(5 * time.Millisecond) {
		events, err := os.ReadFile(filepath.Join(cgroup, "cgroup.events"))
		if err != nil {
			return fmt.Errorf("wait for cgroup %s to be empty: %w", cgroup, err)
		}
		if strings.Contains(string(events), "populated 0") {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup %s still has processes %s after they were killed", cgroup, killTimeout)
		}
	}
}

// removeTree removes a cgroup and those below it, the deepest first. Its
// files are the kernel's and go with the directories.
func removeTree(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for _, dir := range slices.Backward(dirs) {
		// The last process's exit may take a moment to let go of the directory.
		err = errors.Join(err, retryBusy(func() error { return os.Remove(dir) }))
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", top, err)
	}
	return nil
}

// retryBusy calls fn until it no longer fails with EBUSY, for a second at most.
func retryBusy(fn func() error) error {
	for deadline := time.Now().Add(time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := fn()
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}
