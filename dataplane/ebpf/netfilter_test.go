package ebpf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A command that hangs is killed, and a child of its own that keeps the output open is
// not waited for.
func TestCommandsEnd(t *testing.T) {
	script := filepath.Join(t.TempDir(), "iptables-legacy-save")
	write := func(text string) {
		if err := os.WriteFile(script, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("setsid sleep 20 & exec sleep 20")
	begun := time.Now()
	_, err := run(100*time.Millisecond, "", script)
	if took := time.Since(begun); err == nil || !strings.Contains(err.Error(), "did not end in 100ms") || took > 10*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	write("echo '*nat'")
	if out, err := run(time.Minute, "", script); err != nil || string(out) != "*nat\n" {
		t.Errorf("%q, %v", out, err)
	}
}
