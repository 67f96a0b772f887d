package seccomp

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// The profile replaces an older one, leaves nothing beside it, and is gone after Remove.
func TestInstallAndRemove(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	if err := os.WriteFile(path, []byte("older, and longer than nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Install(dir); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	info, _ := os.Stat(path)
	if err != nil || !bytes.Equal(got, Profile) || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %d bytes of %d, %v", err, len(got), len(Profile), info)
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
	missing := filepath.Join(dir, "missing")
	if err := Install(missing); err == nil {
		t.Error("installed into a directory that is not there")
	}
	if err := os.MkdirAll(filepath.Join(dir, FileName, "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	if Install(dir) == nil || Remove(dir) == nil {
		t.Error("a directory in the profile's place was replaced or removed")
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left after a failure: %v %v", left, err)
	}
}
