package iptables

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeproxy/nodeproxy/internal/nettest"
	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

var backends = []Backend{BackendNFT, BackendLegacy}

// eachBackend runs a test in a network namespace of its own for each back end.
func eachBackend(t *testing.T, run func(t *testing.T, b Backend)) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			nettest.Enter(t)
			run(t, b)
		})
	}
}

func (d *Dataplane) mustSync(t *testing.T, table *service.Table, changed []service.Name) {
	t.Helper()
	if err := d.Sync(context.Background(), table, changed); err != nil {
		t.Fatal(err)
	}
}

func (d *Dataplane) writes() int {
	return d.families[service.IPv4].kernel.writes + d.families[service.IPv6].kernel.writes
}

func runTool(t *testing.T, command string, args ...string) string {
	t.Helper()
	out, err := exec.Command(command, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", command, strings.Join(args, " "), err, out)
	}
	return string(out)
}

var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// saved returns what the save programs of every back end and family print, as
// lines without comments and counters. Tables without any rule are left out:
// the kernel makes them when they are first looked at.
func saved(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, b := range backends {
		for _, name := range []string{"iptables", "ip6tables"} {
			for table := range strings.SplitSeq(runTool(t, name+"-"+string(b)+"-save"), "COMMIT") {
				lines := strings.Builder{}
				for line := range strings.Lines(table) {
					if !strings.HasPrefix(line, "#") {
						lines.WriteString(counters.ReplaceAllString(line, "[0:0]"))
					}
				}
				if strings.Contains(lines.String(), "\n-A ") || strings.Contains(lines.String(), " - [0:0]") {
					fmt.Fprintf(&out, "%s-%s %s", name, b, lines.String())
				}
			}
		}
	}
	return out.String()
}

// What is read back must be recognised, or every comparison would end in
// writing it all again.
func TestKernelHoldsWhatWasWritten(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		for seed := range uint64(8) {
			gen := synth.NewRandom(seed)
			r := service.NewResolver(gen.Config())
			r.Apply(gen.Cluster(25))
			d := mustNew(t, b)
			d.mustSync(t, r.Table(), nil)
			wrote := d.writes()
			if wrote == 0 {
				t.Fatal("the first sync wrote nothing")
			}
			d.mustSync(t, r.Table(), nil)
			if d.writes() != wrote {
				t.Errorf("seed %d: the second full sync of the same table wrote again", seed)
			}
			restarted := mustNew(t, b)
			restarted.mustSync(t, r.Table(), nil)
			if n := restarted.writes(); n != 0 {
				t.Errorf("seed %d: a restarted agent wrote %d transactions over what it had written", seed, n)
			}
		}
	})
}

func TestKernelHoldsPings(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		r := service.NewResolver(synth.Config())
		r.Apply(synth.NewRandom(1).Cluster(10))
		for i := range 2 {
			d := mustNew(t, b)
			d.settings.ping = true
			d.mustSync(t, r.Table(), nil)
			if i > 0 && d.writes() != 0 {
				t.Errorf("an agent that was started again wrote %d transactions over its own", d.writes())
			}
		}
		if n := strings.Count(saved(t), `--comment ping -j DNAT`); n < 10 {
			t.Errorf("%d rules for pings", n)
		}
	})
}

func TestPartialSyncLeavesWhatAFullOneWants(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		gen := synth.NewRandom(42)
		r := service.NewResolver(gen.Config())
		r.Apply(gen.Cluster(30))
		d := mustNew(t, b)
		d.mustSync(t, r.Table(), nil)
		for step := range 30 {
			svc := gen.Service(step % 35)
			c := service.Changes{Services: []*service.Service{svc}}
			switch step % 3 {
			case 1:
				c.EndpointSlices = append(c.EndpointSlices, gen.Slice(svc, 0))
			case 2:
				c = service.Changes{DeletedServices: []service.Name{svc.Name}}
			}
			if changed, _ := r.Apply(c); len(changed) > 0 {
				d.mustSync(t, r.Table(), changed)
			}
			check := mustNew(t, b)
			check.mustSync(t, r.Table(), nil)
			if check.writes() != 0 {
				t.Fatalf("step %d: a full sync had to mend what partial ones left", step)
			}
		}
	})
}

func TestRepairsWhatOthersDo(t *testing.T) {
	damage := map[string][]string{
		"flush nat":             {"-t", "nat", "-F"},
		"flush filter":          {"-t", "filter", "-F"},
		"flush one chain":       {"-t", "nat", "-F", chainPostrouting},
		"delete a jump":         {"-t", "nat", "-D", "PREROUTING", "1"},
		"delete a filter jump":  {"-t", "filter", "-D", "FORWARD", "1"},
		"a rule that is not us": {"-t", "nat", "-I", chainServices, "1", "-j", "RETURN"},
		"delete a rule":         {"-t", "nat", "-D", chainPostrouting, "2"},
	}
	eachBackend(t, func(t *testing.T, b Backend) {
		r := service.NewResolver(synth.Config())
		r.Apply(synth.Cluster(20, 3))
		d := mustNew(t, b)
		d.mustSync(t, r.Table(), nil)
		want := saved(t)
		for name, args := range damage {
			runTool(t, "iptables-"+string(b), args...)
			if saved(t) == want {
				t.Fatalf("%s: changed nothing, so it shows nothing", name)
			}
			d.mustSync(t, r.Table(), nil)
			if diff := cmp.Diff(want, saved(t)); diff != "" {
				t.Errorf("%s: not repaired (-want +got):\n%s", name, diff)
			}
		}
		runTool(t, "iptables-"+string(b), "-t", "nat", "-F")
		runTool(t, "iptables-"+string(b), "-t", "nat", "-X")
		d.mustSync(t, r.Table(), nil)
		if diff := cmp.Diff(want, saved(t)); diff != "" {
			t.Errorf("all chains deleted: not repaired (-want +got):\n%s", diff)
		}
	})
}

func TestCleanupLeavesWhatOthersHad(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		for _, name := range []string{"iptables-", "ip6tables-"} {
			runTool(t, name+string(b), "-t", "nat", "-N", "OTHERS")
			runTool(t, name+string(b), "-t", "nat", "-A", "PREROUTING", "-m", "comment", "--comment", "not ours", "-j", "OTHERS")
			runTool(t, name+string(b), "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
			runTool(t, name+string(b), "-A", "FORWARD", "-p", "tcp", "--dport", "25", "-j", "DROP")
		}
		before := saved(t)
		gen := synth.NewRandom(3)
		r := service.NewResolver(gen.Config())
		r.Apply(gen.Cluster(40))
		mustNew(t, b).mustSync(t, r.Table(), nil)
		if saved(t) == before {
			t.Fatal("nothing was programmed")
		}
		if err := Cleanup(context.Background()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, saved(t)); diff != "" {
			t.Errorf("after cleanup (-before +after):\n%s", diff)
		}
	})
}

func TestFailedSyncIsMadeGoodByTheNext(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		r := service.NewResolver(synth.Config())
		r.Apply(synth.Cluster(10, 2))
		d := mustNew(t, b)
		d.mustSync(t, r.Table(), nil)
		svc, _ := synth.Service(3, 2)
		changed, _ := r.Apply(service.Changes{EndpointSlices: []*service.EndpointSlice{synth.Slice(svc, 100, 4)}})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := d.Sync(ctx, r.Table(), changed); err == nil {
			t.Fatal("a sync without time to run succeeded")
		}
		d.mustSync(t, r.Table(), nil)
		check := mustNew(t, b)
		check.mustSync(t, r.Table(), nil)
		if check.writes() != 0 {
			t.Error("the sync after a failed one left something undone")
		}
	})
}

func TestDetectFindsTheBackendInUse(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		runTool(t, "iptables-"+string(b), "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")
		got, err := Detect(context.Background())
		if err != nil || got != b {
			t.Errorf("Detect() = %q, %v, want %q", got, err, b)
		}
	})
}

func TestParseSaveIgnoresWhatIsNotOurs(t *testing.T) {
	out := []byte("*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-X - [0:0]\n:NODEPROXY-A - [0:0]\n" +
		"-A PREROUTING -m comment --comment \"x -j y\" -j NODEPROXY-A\n-A KUBE-X -j RETURN\n-A NODEPROXY-A -j RETURN\nCOMMIT\n")
	got := parseSave(out, ours)
	if len(got.shapes) != 1 || len(got.jumps["PREROUTING"]) != 1 {
		t.Errorf("parseSave = %+v", got)
	}
	if bytes.Contains(out, []byte("garbage")) {
		t.Error("input changed")
	}
}

// The kernel's generation changes with every change of rules, by any program, and with
// nothing else: the agent reads rules back only when it has changed.
func TestGenerationChangesWithRules(t *testing.T) {
	nettest.Enter(t)
	k, err := newKernel(t.Context(), BackendNFT, service.IPv4)
	if err != nil {
		t.Fatal(err)
	}
	first, ok := k.generation()
	again, _ := k.generation()
	if !ok || again != first {
		t.Fatalf("generation %d, then %d, known %v; want the same twice", first, again, ok)
	}
	runTool(t, "iptables-nft", "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT")
	if now, _ := k.generation(); now == first {
		t.Error("a new rule did not change the generation")
	}
}

// BenchmarkVerify compares the kernel with the table when nothing has changed.
func BenchmarkVerify(b *testing.B) {
	for _, backend := range backends {
		b.Run(string(backend), func(b *testing.B) {
			nettest.Enter(b)
			r := service.NewResolver(synth.Config())
			r.Apply(synth.Cluster(10000, 5))
			d := mustNew(b, backend)
			for b.Loop() {
				if err := d.Sync(context.Background(), r.Table(), nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What accepts forwarded packets goes behind those who judge them, as policy
// engines do from the head of FORWARD.
func TestLeadingJumps(t *testing.T) {
	for name, c := range map[string]struct {
		rules string
		want  int
	}{
		"none":               {"", 0},
		"a policy engine":    {"-A FORWARD -j cali-FORWARD\n-A FORWARD -j ACCEPT\n", 1},
		"behind a rule":      {"-A FORWARD -p tcp -j DROP\n-A FORWARD -j cali-FORWARD\n", 0},
		"with ours between":  {"-A FORWARD -j cali-FORWARD\n-A FORWARD -m comment --comment \"a -j b\" -j NODEPROXY-X\n-A FORWARD -o d -j DOCKER\n-A FORWARD -j DROP\n", 3},
		"ours alone":         {"-A FORWARD -j NODEPROXY-X\n", 0},
		"rules of INPUT too": {"-A INPUT -j cali-FORWARD\n", 0},
	} {
		out := "*filter\n:FORWARD ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:cali-FORWARD - [0:0]\n:DOCKER - [0:0]\n:NODEPROXY-X - [0:0]\n" + c.rules + "COMMIT\n"
		if got := leadingJumps([]byte(out), "FORWARD"); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
