package netnstests

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// hangingPath returns a PATH in which a command of iptables ("-restore", or "" for
// iptables itself) waits for ever while a file is there.
func hangingPath(t *testing.T, hang, hanging string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"", "-save", "-restore"} {
			program := name + "-nft" + verb
			real, err := exec.LookPath(program)
			if err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf("#!/bin/sh\nexec %s \"$@\"\n", real)
			if verb == hanging {
				text = fmt.Sprintf("#!/bin/sh\nwhile [ -e %s ]; do sleep 0.1; done\nexec %s \"$@\"\n", hang, real)
			}
			if err := os.WriteFile(filepath.Join(dir, program), []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return "PATH=" + dir + ":" + os.Getenv("PATH")
}

// An iptables-restore that hangs keeps nobody from asking how the agent is, nor
// the agent from ending, and a manifest that never ends does not either.
func TestHangingCommandStopsNothingElse(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	l := columns[0].up(t, false)
	apply(t, l, find("web"))
	startAgents(t, l)
	agent, _, err := l.Agent("node-a")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.StopAgent("node-a"), syscall.Mkfifo(filepath.Join(l.ManifestDir(), "pipe.yaml"), 0o644)); err != nil {
		t.Fatal(err)
	}
	hang := filepath.Join(t.TempDir(), "hang")
	cmd := l.Command(t.Context(), "node-a", agent.Argv...)
	cmd.Env = append(os.Environ(), hangingPath(t, hang, "-restore"))
	var log safeBuffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	eventually(t, 30*time.Second, log.has("msg=synced")) // the pipe holds it back for ten seconds
	if !strings.Contains(log.String(), "is a named pipe") {
		t.Errorf("nothing is said of the pipe:\n%s", log.String())
	}
	if err := os.WriteFile(hang, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	web := find("web")
	web.endpoints = pods("pod-b1")
	apply(t, l, web)
	eventually(t, patience, func() error {
		var s admin.Status
		begun := time.Now()
		err := admin.Get(t.Context(), admin.Socket(l.Netns("node-a")), "/v1/status", nil, &s)
		if took := time.Since(begun); err != nil || took > 4*time.Second {
			return fmt.Errorf("status took %v: %w", took, err)
		}
		if !s.Uncounted || s.Syncing == nil {
			return fmt.Errorf("status %+v does not tell of a sync that runs", s)
		}
		return nil
	})
	endsSoon(t, cmd, ended, &log, hang)
}

// The same of the iptables that ebpf mode asks about FORWARD, which somebody else has
// begun to use.
func TestHangingCommandStopsNothingElseInEBPFMode(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	l := columns[2].up(t, false)
	apply(t, l, find("web"))
	startAgents(t, l)
	agent, _, err := l.Agent("node-a")
	must(t, err)
	must(t, l.StopAgent("node-a"))
	hang := filepath.Join(t.TempDir(), "hang")
	cmd := l.Command(t.Context(), "node-a", agent.Argv...)
	cmd.Env = append(os.Environ(), hangingPath(t, hang, ""))
	var log safeBuffer
	cmd.Stderr = &log
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	eventually(t, patience, log.has("msg=synced"))
	must(t, os.WriteFile(hang, nil, 0o644))
	inPlace(t, l, "node-a", "iptables-nft", "-A", "FORWARD", "-s", "192.0.2.1", "-j", "DROP")
	eventually(t, patience, func() error {
		if processesWith(filepath.Dir(filepath.Dir(hang))) == "" {
			return errors.New("no iptables hangs")
		}
		return nil
	})
	apply(t, l, find("single"))
	for range 5 {
		begun := time.Now()
		var s admin.Status
		if err := admin.Get(t.Context(), admin.Socket(l.Netns("node-a")), "/v1/status", nil, &s); err != nil || time.Since(begun) > 4*time.Second {
			t.Errorf("status took %v: %v", time.Since(begun), err)
		}
	}
	eventually(t, 3*patience, func() error { return onNode(t, l, "single node-a", "pod-a1") }) // the hanging one is ended
	inPlace(t, l, "node-a", "iptables-nft", "-A", "FORWARD", "-s", "192.0.2.2", "-j", "DROP")
	endsSoon(t, cmd, ended, &log, hang)
}

// endsSoon has an agent end that waits for a command which hangs.
func endsSoon(t *testing.T, cmd *lab.Cmd, ended <-chan error, log *safeBuffer, hang string) {
	t.Helper()
	begun := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
		t.Logf("ended after %v", time.Since(begun).Round(time.Millisecond))
	case <-time.After(5 * time.Second):
		t.Errorf("the agent has not ended 5 s after SIGTERM:\n%s", log.String())
	}
	if left := processesWith(filepath.Dir(filepath.Dir(hang))); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// processesWith lists processes that have a text in their arguments or that run a
// script which has it.
func processesWith(text string) string {
	out, _ := exec.Command("pgrep", "-af", text).Output() // fails if there is none
	return strings.TrimSpace(string(out))
}

// Any process of a node can make an abstract socket; none may keep the agent from
// its start by that.
func TestNobodyElseCanTakeTheLock(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	l := columns[0].up(t, false)
	err := l.Do("node-a", func() error {
		held, err := net.Listen("unix", "@nodeproxy/lock")
		if err == nil {
			t.Cleanup(func() { held.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-a"); err != nil {
		t.Error(err)
	}
}
