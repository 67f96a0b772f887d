package iptables

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/dataplane/command"
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

// A write that hangs fails the sync, and the next one succeeds.
func TestHangingRestoreFailsOneSync(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		r := service.NewResolver(synth.Config())
		r.Apply(synth.Cluster(3, 2))
		d := mustNew(t, b)
		k := d.families[service.IPv4].kernel
		restore := k.restore
		k.restore, k.limit = script(t, "sleep 1000"), 200*time.Millisecond
		if err := d.Sync(t.Context(), r.Table(), nil); !errors.Is(err, command.ErrTooLong) {
			t.Fatalf("error %v, want %v", err, command.ErrTooLong)
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
