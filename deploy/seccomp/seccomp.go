// Package seccomp holds the agent's seccomp profile: the system calls that an agent,
// iptables and modprobe make, and no others.
package seccomp

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// FileName is what the profile is called in a kubelet's directory of profiles. The
// manifests name it as localhostProfile.
const FileName = "nodeproxy.json"

// Profile is the profile, in the form that container runtimes read.
//
//go:embed nodeproxy.json
var Profile []byte

// Install writes the profile into a directory, at once or not at all: a container runtime
// may read it at any time.
func Install(dir string) error {
	tmp, err := os.CreateTemp(dir, "."+FileName+".*.tmp")
	if err != nil {
		return fmt.Errorf("install seccomp profile: %w", err)
	}
	_, err = tmp.Write(Profile)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, FileName))
	}
	if err != nil {
		return fmt.Errorf("install seccomp profile: %w", errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}

// Remove removes the profile from a directory. That it is not there is no error.
func Remove(dir string) error {
	if err := os.Remove(filepath.Join(dir, FileName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove seccomp profile: %w", err)
	}
	return nil
}
