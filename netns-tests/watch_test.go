package netnstests

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// watching is nodeproxy watch on node-a.
type watching struct {
	cmd            *lab.Cmd
	stdout, stderr safeBuffer
}

func startWatch(t *testing.T, l *lab.Lab, args ...string) *watching {
	t.Helper()
	argv := append([]string{l.Options().Binary, "watch", "-o", "json", "--instance", l.Netns("node-a")}, args...)
	w := &watching{cmd: l.Command(t.Context(), "node-a", argv...)}
	w.cmd.Stdout, w.cmd.Stderr = &w.stdout, &w.stderr
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, w.stderr.has("watching"))
	return w
}

// end interrupts it, which is no error.
func (w *watching) end(t *testing.T) {
	t.Helper()
	if err := w.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Error(err)
	}
	if err := w.cmd.Wait(); err != nil {
		t.Errorf("watch: %v: %s", err, w.stderr.String())
	}
}

// saw wants an event that fits.
func (w *watching) saw(what string, fits func(view.Event) bool) func() error {
	return func() error {
		var all []view.Event
		for line := range strings.Lines(w.stdout.String()) {
			var e view.Event
			if strings.HasSuffix(line, "\n") && json.Unmarshal([]byte(line), &e) == nil {
				all = append(all, e)
			}
		}
		if !slices.ContainsFunc(all, fits) {
			return fmt.Errorf("no %s among\n%s", what, w.stdout.String())
		}
		return nil
	}
}

// TestWatch looks on while flows are translated and refused, at the agent and,
// when it is dead, at the kernel.
func TestWatch(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("empty"), find("local-a"))
		startAgents(t, l)
		for _, dead := range []bool{false, true} {
			watchOnce(t, l, c, dead)
			if !dead {
				if err := l.KillAgent("node-a"); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func watchOnce(t *testing.T, l *lab.Lab, c column, dead bool) {
	t.Helper()
	all := startWatch(t, l)
	if said := strings.Contains(all.stderr.String(), "no agent answers"); said != dead {
		t.Errorf("dead %v: %s", dead, all.stderr.String())
	}
	var drops *watching
	if !dead { // of the kernel there can be one watcher at a time
		drops = startWatch(t, l, "--drops", "--service", "default/empty")
	}
	client, node := lab.MustPlace("client"), lab.MustPlace("node-a")
	held := holdOver(t, l, echo.TCP, 2, "client", "web node-a")
	pingAll(t, held)
	refusal := flow{lab: l, network: echo.TCP, from: client, to: find("empty").addr("node-a", 80, false), scenario: scenario{want: refused}}
	if err := refusal.check(t.Context()); err != nil {
		t.Error(err)
	}
	for _, h := range held {
		v6 := h.answer.Source.Addr().Is6()
		who, _, _ := strings.Cut(h.answer.Name, "/")
		eventually(t, patience, all.saw("translation of "+h.text, func(e view.Event) bool {
			return e.Verdict == "translate" && e.Reason == "flow_new" && e.Service == "default/web:echo" && e.Protocol == "TCP" &&
				e.Source.Addr() == client.Addr(v6) && e.Destination.Addr() == node.Addr(v6) && e.Backend != nil && e.SeenAs != nil &&
				e.Backend.Addr() == lab.MustPlace(who).Addr(v6) && *e.SeenAs == h.answer.Source
		}))
	}
	isRefusal := func(e view.Event) bool {
		known := c.Backend != "" && e.Packets > 0 || e.Source.Addr() == client.Addr(false)
		return e.Verdict == "reject" && e.Reason == "no_endpoints" && e.Service == "default/empty:echo" && known
	}
	eventually(t, patience, all.saw("refusal", isRefusal))
	all.end(t)
	if drops == nil {
		return
	}
	eventually(t, patience, drops.saw("refusal", isRefusal))
	if strings.Contains(drops.stdout.String(), "translate") || strings.Contains(drops.stdout.String(), "default/web") {
		t.Errorf("--drops --service default/empty also shows\n%s", drops.stdout.String())
	}
	drops.end(t)
}
