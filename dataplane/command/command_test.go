package command

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A command that hangs is killed with what it started, also if that holds its
// output open.
func TestCommandThatHangsIsKilled(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	path := filepath.Join(t.TempDir(), "iptables-nft-restore")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nsleep 1000 & echo $! > "+pid+"; wait\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	_, err := Run(t.Context(), 200*time.Millisecond, nil, path)
	if !errors.Is(err, ErrTooLong) || !strings.HasPrefix(err.Error(), "iptables-nft-restore, in 200ms") {
		t.Errorf("error %v, want %v, with the command's name", err, ErrTooLong)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); runs(child); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("its child still runs")
		}
	}
}

// runs reports whether a process is there and is no zombie.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ") && !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// A child of its own session that keeps the output open is not waited for.
func TestOutputThatStaysOpenIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "iptables-legacy-save")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nsetsid sleep 20 & exec sleep 20\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if _, err := Run(t.Context(), 100*time.Millisecond, nil, path); !errors.Is(err, ErrTooLong) || time.Since(begun) > 10*time.Second {
		t.Errorf("after %v: %v", time.Since(begun), err)
	}
}

// What a command prints, what it is given, and what it complains of.
func TestRun(t *testing.T) {
	out, err := Run(t.Context(), time.Minute, []byte("in"), "sh", "-c", "cat; echo ' out'")
	if err != nil || string(out) != "in out\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, err = Run(t.Context(), time.Minute, nil, "sh", "-c", "for i in 1 2 3 4; do echo line $i >&2; done; exit 3")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || err.Error() != "sh: exit status 3: line 1; line 2; line 3" {
		t.Errorf("%v", err)
	}
	if _, err := Run(t.Context(), time.Minute, nil, "no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("%v", err)
	}
}
