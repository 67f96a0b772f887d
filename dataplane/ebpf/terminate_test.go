package ebpf

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Entries of a directory of names that are no namespaces are passed over, without
// being opened.
func TestOnlyNamespacesAreEntered(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.WriteFile(path("file"), nil, 0o644), syscall.Mkfifo(path("pipe"), 0o644), os.Mkdir(path("directory"), 0o755),
		os.Symlink("nowhere", path("dangling")), os.Symlink("/proc/self/ns/net", path("link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]bool{"file": false, "pipe": false, "directory": false, "dangling": false, "missing": false, "link": true} {
		if got := isNamespace(path(name)); got != want {
			t.Errorf("%s: %t, want %t", name, got, want)
		}
	}
	if !isNamespace("/proc/self/ns/net") {
		t.Error("the process's own namespace is none")
	}
}

// Names of namespaces are followed where the directory, or /run, is a mount that gets
// what the host mounts; a copy of the host's at the start of a container is not.
func TestNamesAreFollowed(t *testing.T) {
	for line, want := range map[string]bool{
		"22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw":                 false,
		"30 27 0:40 /netns /run/netns ro,relatime master:7 - tmpfs tmpfs rw":     true,
		"30 27 0:40 /netns /run/netns rw shared:7 master:2 - tmpfs tmpfs rw":     true,
		"30 27 0:40 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,size=1k":          true,
		"30 27 0:40 /netns /run/netns ro,relatime - tmpfs tmpfs rw":              false,
		"30 27 0:4 net:[4026532348] /run/netns/cni-1 rw shared:8 - nsfs nsfs rw": false,
		"30 27 0:40 / /run rw,relatime unbindable - tmpfs shared:5 rw":           false,
		"30 27 0:40 / /\nshort": false,
		"31 27 0:40 / / rw master:1 - overlay overlay rw\n30 31 0:4 / /run rw - t t rw": false,
	} {
		if got := namesFollowed(line + "\n"); got != want {
			t.Errorf("%s: %t, want %t", line, got, want)
		}
	}
}
