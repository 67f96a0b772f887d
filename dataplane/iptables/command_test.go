package iptables

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/internal/nettest"
	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// script writes a program in the language of sh.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "iptables-nft-restore")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// A command that hangs is killed with what it started, also if that holds its
// output open.
func TestCommandThatHangsIsKilled(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	path := script(t, "sleep 1000 & echo $! > "+pid+"; wait")
	begun := time.Now()
	_, err := run(t.Context(), 200*time.Millisecond, nil, path)
	if !errors.Is(err, errTooLong) || !strings.HasPrefix(err.Error(), "iptables-nft-restore, in 200ms") {
		t.Errorf("error %v, want %v, with the command's name", err, errTooLong)
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

// A write that hangs fails the sync, and the next one succeeds.
func TestHangingRestoreFailsOneSync(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		r := service.NewResolver(synth.Config())
		r.Apply(synth.Cluster(3, 2))
		d := mustNew(t, b)
		k := d.families[service.IPv4].kernel
		restore := k.restore
		k.restore, k.limit = script(t, "sleep 1000"), 200*time.Millisecond
		if err := d.Sync(t.Context(), r.Table(), nil); !errors.Is(err, errTooLong) {
			t.Fatalf("error %v, want %v", err, errTooLong)
		}
		k.restore, k.limit = restore, commandLimit
		d.mustSync(t, r.Table(), nil)
	})
}

func TestInstalledIPTablesIsProbed(t *testing.T) {
	nettest.RequireRoot(t)
	k, err := newKernel(t.Context(), BackendNFT, service.IPv4)
	if err != nil || !k.randomFully {
		t.Errorf("the installed iptables: %+v, %v", k, err)
	}
}
