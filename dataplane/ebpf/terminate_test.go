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
