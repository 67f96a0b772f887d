package netnstests

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/admin"
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
		apply(t, l, find("web"), find("empty"), find("local-b"), find("deny"), find("deny-empty"))
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
	sent := refusals(t, l)
	for _, h := range held {
		v6 := h.answer.Source.Addr().Is6()
		who, _, _ := strings.Cut(h.answer.Name, "/")
		eventually(t, patience, all.saw("translation of "+h.text, func(e view.Event) bool {
			return e.Verdict == "translate" && e.Reason == "flow_new" && e.Service == "default/web:echo" && e.Protocol == "TCP" &&
				e.Source.Addr() == client.Addr(v6) && e.Destination.Addr() == node.Addr(v6) && e.Backend != nil && e.SeenAs != nil &&
				e.Backend.Addr() == lab.MustPlace(who).Addr(v6) && *e.SeenAs == h.answer.Source
		}))
	}
	for _, r := range sent {
		if dead && c.Backend != "" && r.reason != "no_endpoints" {
			continue // rules are counted then, of which one may have several reasons
		}
		eventually(t, patience, all.saw(r.reason+" of "+r.to.String(), func(e view.Event) bool { return r.is(e, dead && c.Backend != "") }))
	}
	isRefusal := func(e view.Event) bool { return sent[0].is(e, false) }
	if c.Backend != "" && !dead { // nothing is shown twice
		time.Sleep(2500 * time.Millisecond)
		if out := all.stdout.String(); strings.Contains(out, `"packets"`) {
			t.Errorf("packets that were shown are counted too:\n%s", out)
		}
	}
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

// refusal is a packet that was sent, and why it was refused.
type refusal struct {
	flow
	verdict, reason, service string
}

// is tells whether an event is about it; counted events know no source.
func (r *refusal) is(e view.Event, counted bool) bool {
	if e.Verdict != r.verdict || e.Reason != r.reason || e.Service != r.service || e.Protocol != strings.ToUpper(string(r.network)) {
		return false
	}
	return counted && e.Packets > 0 || e.Source.Addr() == r.from.Addr(r.v6) && e.Destination == r.to
}

// refusals sends packets that are refused, for every reason that there is.
func refusals(t *testing.T, l *lab.Lab) []refusal {
	t.Helper()
	var out []refusal
	for _, r := range []struct {
		from, service, at       string
		port                    uint16
		network                 echo.Network
		v6                      bool
		verdict, reason, portIs string
	}{
		{"client", "empty", "node-a", 80, echo.TCP, false, "reject", "no_endpoints", "default/empty:echo"},
		{"client", "empty", "external", 80, echo.UDP, true, "reject", "no_endpoints", "default/empty:echo-udp"},
		{"client", "local-b", "node-a", 80, echo.UDP, false, "drop", "policy", "default/local-b:echo-udp"},
		{"client", "local-b", "balancer", 80, echo.TCP, true, "drop", "policy", "default/local-b:echo"},
		{"client", "deny", "balancer", 80, echo.TCP, false, "drop", "source_range", "default/deny:echo"},
		{"client", "deny-empty", "balancer", 80, echo.UDP, true, "drop", "source_range", "default/deny-empty:echo-udp"},
		{"client", "web", "external", 81, echo.UDP, false, "reject", "unknown_port", ""},
	} {
		f := flow{lab: l, network: r.network, v6: r.v6, from: lab.MustPlace(r.from), at: r.at, to: find(r.service).addr(r.at, r.port, r.v6)}
		f.want = map[string]string{"reject": refused, "drop": dropped}[r.verdict]
		if err := f.check(t.Context()); err != nil {
			t.Errorf("%s to %s: %v", r.from, f.to, err)
		}
		out = append(out, refusal{f, r.verdict, r.reason, r.portIs})
	}
	return out
}

// TestWatchNamesTheProcess has programs of a Pod and of the node call a Service with
// endpoints, and one without: each event names who called, in a way that a terminal stands.
func TestWatchNamesTheProcess(t *testing.T) {
	eachOf(t, func(c column) bool { return c.Name == "ebpf" }, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("empty"))
		startAgents(t, l)
		strange := filepath.Join(t.TempDir(), "\x1b[31mre\td\xff")
		curl, err := exec.LookPath("curl")
		must(t, err)
		must(t, os.Symlink(curl, strange))
		w, text := startWatch(t, l), startWatch(t, l, "-o", "")
		for _, by := range []struct{ from, program, shown string }{
			{"pod-a1", curl, "curl"}, {"node-a", curl, "curl"}, {"pod-a1", strange, `\x1b[31mre\td\xff`},
		} {
			for service, verdict := range map[string]string{"web": "translate", "empty": "reject"} {
				to := find(service).addr("cluster", 80, false)
				cmd := l.Command(t.Context(), by.from, by.program, "-s", "-m", "5", "http://"+to.String())
				_ = cmd.Run() // what serves speaks no HTTP
				what := fmt.Sprintf("%s of %s by %s, process %d", verdict, to, by.shown, cmd.Process.Pid)
				eventually(t, patience, w.saw(what, func(e view.Event) bool {
					return e.Verdict == verdict && e.Destination == to && e.Process != nil && *e.Process == view.Process{Name: by.shown, ID: uint32(cmd.Process.Pid)}
				}))
				eventually(t, patience, text.stdout.has(fmt.Sprintf("by %s (process %d)\n", by.shown, cmd.Process.Pid)))
			}
		}
		w.end(t)
		text.end(t)
	})
}

// TestWatchLeavesNoRules looks at the rules while somebody watches: verify finds
// nothing, explain reads them. They are gone with who watched, with the agent,
// and, after an agent was killed, with the next one.
func TestWatchLeavesNoRules(t *testing.T) {
	eachIPTables(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--sync-period", "1h")
		apply(t, l, find("web"), find("empty"), find("deny-empty"))
		startAgents(t, l)
		before := savedRules(t, l, "node-a")
		logs := func(want bool) func() error {
			return func() error {
				now := savedRules(t, l, "node-a")
				if strings.Contains(now, "NFLOG") != want || !want && now != before {
					return fmt.Errorf("logs %v; the rules are\n%s\nbefore\n%s", want, now, before)
				}
				return nil
			}
		}
		w := startWatch(t, l)
		eventually(t, patience, logs(true))
		var found []view.Difference
		if complaint, err := asked(t, l, &found, "verify"); err != nil || len(found) > 0 {
			t.Errorf("verify, while somebody watches: %v %s %v", err, complaint, found)
		}
		var e admin.Explanation
		if complaint, err := asked(t, l, &e, "explain", "--from", "203.0.113.1", find("empty").addr("external", 80, false).String()); err != nil || e.Verdict != "reject" || e.Differs != "" {
			t.Errorf("explain, while somebody watches: %v %s %v", err, complaint, e.Steps)
		}
		apply(t, l, find("local-b")) // a Service that is new meanwhile
		dropping := flow{lab: l, network: echo.TCP, from: lab.MustPlace("client"), at: "node-a", to: find("local-b").addr("node-a", 80, false), scenario: scenario{want: dropped}}
		eventually(t, patience, func() error { return dropping.check(t.Context()) })
		eventually(t, patience, w.saw("drop of a new Service", func(e view.Event) bool {
			return e.Verdict == "drop" && e.Reason == "policy" && e.Service == "default/local-b:echo" && e.Source.Addr() == dropping.from.Addr(false)
		}))
		if err := l.Delete("local-b.yaml"); err != nil {
			t.Fatal(err)
		}
		w.end(t)
		eventually(t, patience, logs(false))
		w = startWatch(t, l)
		if err := l.StopAgent("node-a"); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, logs(false))
		_ = w.cmd.Wait() // its agent is gone
		if err := l.StartAgent(t.Context(), "node-a"); err != nil {
			t.Fatal(err)
		}
		w = startWatch(t, l)
		if err := l.KillAgent("node-a"); err != nil {
			t.Fatal(err)
		}
		_ = w.cmd.Wait()
		eventually(t, patience, logs(true))
		if err := l.StartAgent(t.Context(), "node-a"); err != nil {
			t.Fatal(err)
		}
		eventually(t, patience, logs(false))
	})
}
