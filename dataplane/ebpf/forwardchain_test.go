package ebpf

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestAcceptedInForward: where there is a FORWARD chain, our chain stands behind the jumps
// with which it begins, and is put back when it is changed. While nobody has changed
// rules, no command is run. All of it goes again.
func TestAcceptedInForward(t *testing.T) {
	needRoot(t)
	commands := []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"}
	saved := func(tool string) string {
		out, err := exec.Command(tool, "-S").Output() // nft warns of the legacy tables apart
		if err != nil {
			t.Errorf("%s: %v", tool, err)
		}
		return string(out)
	}
	before := map[string]string{}
	isAccepted := func(when string) {
		t.Helper()
		for _, tool := range commands {
			var want, got []string
			for line := range strings.Lines(saved(tool)) {
				if strings.HasPrefix(line, "-A") && !strings.Contains(line, "9.9.9.9") {
					got = append(got, strings.TrimSpace(line))
				}
			}
			want = append(want, "-A FORWARD -j judge", "-A FORWARD "+acceptJump, "-A FORWARD -j ACCEPT")
			for _, rule := range acceptRules {
				want = append(want, "-A "+acceptChain+" "+rule)
			}
			if strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("%s, %s has\n%s\nwant\n%s", when, tool, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	}
	in(t, newNS(t), func() error {
		for _, tool := range commands {
			for _, args := range []string{"-N judge", "-A FORWARD -j judge", "-A FORWARD -j ACCEPT"} {
				if err := runHere(tool + " " + args); err != nil {
					return err
				}
			}
			before[tool] = saved(tool)
		}
		var a acceptance
		ensure := func() error {
			o, err := lookForOthers(t.Context())
			return errors.Join(err, a.ensure(t.Context(), o.older))
		}
		for range 2 { // the second finds everything
			if err := ensure(); err != nil {
				return err
			}
			isAccepted("at first")
		}
		for _, tool := range commands {
			if err := errors.Join(runHere(tool+" -D "+acceptChain+" 2"), runHere(tool+" -D FORWARD "+acceptJump)); err != nil {
				return err
			}
		}
		for range 2 {
			if err := ensure(); err != nil {
				return err
			}
			isAccepted("put back")
		}
		// A command that is run now fails.
		path, bare := os.Getenv("PATH"), t.TempDir()
		for _, tool := range commands {
			for _, name := range []string{tool, tool + "-restore"} {
				if err := os.WriteFile(filepath.Join(bare, name), []byte("#!/bin/sh\necho broken >&2; exit 1\n"), 0o755); err != nil {
					return err
				}
			}
		}
		o, err := lookForOthers(t.Context())
		if err != nil {
			return err
		}
		t.Setenv("PATH", bare+":"+path)
		if err := a.ensure(t.Context(), o.older); err != nil {
			t.Errorf("nothing changed, and commands were run: %v", err)
		}
		if err := runHere("nft add rule ip filter judge ip saddr 9.9.9.9 drop"); err != nil {
			return err
		}
		if err := a.ensure(t.Context(), o.older); err == nil || !strings.Contains(err.Error(), "iptables-nft: exit status 1: broken") {
			t.Errorf("after a change: %v", err)
		}
		t.Setenv("PATH", path)
		if err := errors.Join(ensure(), runHere("iptables-nft -F judge")); err != nil {
			return err
		}
		for range 2 { // the second finds nothing
			if err := removeAccepted(t.Context()); err != nil {
				return err
			}
		}
		for tool, was := range before {
			if got := saved(tool); got != was {
				t.Errorf("%s has\n%s\nwant what was there before\n%s", tool, got, was)
			}
		}
		return nil
	})
}
