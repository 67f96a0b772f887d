package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nodeproxy/nodeproxy/deploy/seccomp"
)

func TestSeccompProfileCommand(t *testing.T) {
	if got := printed(t, "seccomp-profile"); got != string(seccomp.Profile) {
		t.Errorf("printed %d bytes, the profile has %d", len(got), len(seccomp.Profile))
	}
	dir := t.TempDir()
	path := filepath.Join(dir, seccomp.FileName)
	printed(t, "seccomp-profile", "--install", dir)
	if got, err := os.ReadFile(path); err != nil || string(got) != string(seccomp.Profile) {
		t.Errorf("installed %d bytes, %v", len(got), err)
	}
	printed(t, "seccomp-profile", "--remove", dir)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("after --remove: %v", err)
	}
}
