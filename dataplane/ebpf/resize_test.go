package ebpf

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// tiny are sizes that a handful of Services fills.
var tiny = Sizes{Services: 64, Frontends: 64, Backends: 64, Ranges: 64, Flows: 64, Affinities: 64, Fragments: 64, Interfaces: 64}

// more are n Services besides those of a test, each with ports of its own.
func more(n int) (out []svc) {
	for i := range n {
		out = append(out, svc{name: fmt.Sprint("more", i), port: uint16(1000 + i), nodePort: uint16(31000 + i),
			backends: append(to(podA, "8080"), to(podB, "8080")...)})
	}
	return out
}

// open makes n connections to a node port, over both families in turn.
func (n *testNet) open(t *testing.T, count int, port string) (conns []net.Conn) {
	t.Helper()
	in(t, n.client, func() error {
		for i := range count {
			c, err := net.Dial(networks[0][i%2], join(nodeIP[i%2], port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			conns = append(conns, c)
		}
		return nil
	})
	return conns
}

// wantAlive wants an answer over each connection.
func wantAlive(t *testing.T, conns []net.Conn, when string) {
	t.Helper()
	for i, c := range conns {
		if _, err := exchange(c, 0); err != nil {
			t.Errorf("%s: connection %d of %d: %v", when, i, len(conns), err)
			return
		}
	}
}

// limits are the sizes of maps, by the names of [MapUse].
func mapLimits(t *testing.T, d *Dataplane) map[string]uint64 {
	t.Helper()
	uses, err := d.MapUses()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint64{}
	for _, u := range uses {
		out[u.Name] = u.Limit
	}
	return out
}

// connections sums what was counted of all Services.
func connectionsOf(t *testing.T, d *Dataplane) (sum uint64) {
	t.Helper()
	d.settled = time.Time{}
	rows, err := d.Counts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		sum += r.Connections
	}
	return sum
}

// Maps grow with the Services and the flows that there are, under traffic: every
// connection goes on, none fails that begins meanwhile, and what was counted stays.
func TestMapsGrowUnderTraffic(t *testing.T) {
	for _, mode := range []struct {
		name string
		o    Options
	}{
		{"conntrack's flows", Options{Forwarding: ForwardingFast}},
		{"flows of our own", Options{untracked: true}},
		{"clsact", Options{Forwarding: ForwardingStack, NoTCX: true}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			n := newTestNet(t)
			n.serveAll(t)
			mode.o.PinRoot, mode.o.Sizes, mode.o.MapMemory = bpffs(t)+"/nodeproxy", tiny, 1<<30
			mode.o.Sizes.Flows = 8192 // what conntrack does not own finds no room in a full table
			d := n.start(t, mode.o)
			base := both(svc{name: "s", backends: append(to(podA, "8080"), to(podB, "8080")...)})
			syncAll(t, d, n.table(base...))
			conns := n.open(t, 40, "30080")
			wantAlive(t, conns, "before")
			hooks := n.hooks(t, mode.o.PinRoot)
			stop := n.load(t)
			time.Sleep(100 * time.Millisecond)
			syncAll(t, d, n.table(append(base, more(100)...)...))
			time.Sleep(100 * time.Millisecond)
			made, failed := stop()
			if failed > 0 || made < 10 {
				t.Errorf("of %d connections made meanwhile, %d failed", made, failed)
			}
			if left := d.Refused(); len(left) > 0 {
				t.Errorf("%d Services are left out: %v", len(left), left)
			}
			wantAlive(t, conns, "after")
			wantAlive(t, n.open(t, 10, "31099"), "a Service that had no room")
			if got, want := connectionsOf(t, d), uint64(len(conns)+made+10); got != want {
				t.Errorf("%d connections are counted, want %d", got, want)
			}
			if after := n.hooks(t, mode.o.PinRoot); !slices.Equal(hooks, after) {
				t.Errorf("hooks before: %v, after: %v", hooks, after)
			}
			limits := mapLimits(t, d)
			for name, least := range map[string]uint64{"services": 256, "frontends": 512, "backends": 512} {
				if limits[name] < least {
					t.Errorf("map %s has %d entries, want %d at least", name, limits[name], least)
				}
			}
			if rows, err := d.Reader().Services(t.Context()); err != nil || len(rows) < 600 {
				t.Errorf("%d frontends are read: %v", len(rows), err)
			}
		})
	}
}

// More flows than the map was made for make it grow with the next Sync, and all of them
// go on, those that conntrack does not own too.
func TestFlowsGrowUnderTraffic(t *testing.T) {
	for _, o := range []Options{{Forwarding: ForwardingFast}, {untracked: true}} {
		n := newTestNet(t)
		n.serveAll(t)
		o.Sizes, o.MapMemory = tiny, 1<<30
		o.Sizes.Services, o.Sizes.Frontends, o.Sizes.Backends = 256, 512, 512
		o.Sizes.Flows = 512 // what conntrack does not own finds no room in a full table
		d := n.start(t, o)
		table := n.table(both(svc{name: "s", backends: append(to(podA, "8080"), to(podB, "8080")...)})...)
		syncAll(t, d, table)
		conns := n.open(t, 400, "30080")
		wantAlive(t, conns, "before")
		end := time.Now().Add(10 * slowness * time.Second)
		for d.live.Load() < 2*400 && time.Now().Before(end) {
			time.Sleep(20 * time.Millisecond) // the collector looks once a second
		}
		stop := n.load(t)
		syncAll(t, d, table)
		if made, failed := stop(); failed > 0 {
			t.Errorf("of %d connections made meanwhile, %d failed", made, failed)
		}
		wantAlive(t, conns, "after")
		if limits := mapLimits(t, d); limits["flows"] != 2048 || limits["backends"] != 512 {
			t.Errorf("limits are %v", limits)
		}
	}
}

// TestP41OtherSizes: an agent that is started with larger sizes gives them to maps that are
// there, under traffic. One with smaller sizes keeps what they have, and says so.
func TestP41OtherSizes(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	var log bytes.Buffer
	o := Options{PinRoot: bpffs(t) + "/nodeproxy", CgroupPath: cgroup(t), Sizes: tiny, Forwarding: ForwardingFast}
	o.Sizes.Flows = 1024
	d := n.start(t, o)
	table := n.table(both(svc{name: "s", backends: append(to(podA, "8080"), to(podB, "8080")...)})...)
	syncAll(t, d, table)
	conns := n.open(t, 200, "30080")
	stop := n.load(t)
	for _, c := range []struct {
		asked, has uint32
		said       string
	}{{4096, 8192, `msg="maps have other sizes now" flows=8192`}, {128, 8192, `msg="maps keep their larger sizes until a clean-up" maps=flows`}} {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		log.Reset()
		o.Sizes.Flows, o.Logger = c.asked, slog.New(slog.NewTextHandler(&log, nil))
		d = n.start(t, o)
		syncAll(t, d, table)
		if got := mapLimits(t, d)["flows"]; got != uint64(c.has) || !strings.Contains(log.String(), c.said) {
			t.Errorf("%d flows wanted, map has %d entries, want %d; log: %s", c.asked, got, c.has, log.String())
		}
	}
	if made, failed := stop(); failed > 0 || made < 10 {
		t.Errorf("of %d connections made meanwhile, %d failed", made, failed)
	}
	wantAlive(t, conns, "after two restarts")
}

// Where new programs cannot be attached, the old ones and their maps serve on, and
// nothing is left of the attempt.
func TestResizeThatFails(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	o := Options{PinRoot: bpffs(t) + "/nodeproxy", CgroupPath: cgroup(t), Sizes: tiny, Forwarding: ForwardingFast, MapMemory: 1 << 30}
	d := n.start(t, o)
	base := both(svc{name: "s", backends: to(podA, "8080")})
	syncAll(t, d, n.table(base...))
	conns := n.open(t, 10, "30080")
	hooks := n.hooks(t, o.PinRoot)
	d.o.CgroupPath = o.CgroupPath + "/gone"
	syncAll(t, d, n.table(append(base, more(60)...)...)) // the others are served
	if len(d.Refused()) == 0 || mapLimits(t, d)["backends"] != 64 {
		t.Errorf("%d Services are left out, and limits are %v", len(d.Refused()), mapLimits(t, d))
	}
	wantAlive(t, conns, "after it")
	wantAlive(t, n.open(t, 4, "30080"), "new ones after it")
	if after := n.hooks(t, o.PinRoot); !slices.Equal(hooks, after) {
		t.Errorf("hooks before: %v, after: %v", hooks, after)
	}
	d.o.CgroupPath = o.CgroupPath
	syncAll(t, d, n.table(append(base, more(60)...)...))
	if len(d.Refused()) > 0 {
		t.Errorf("%d Services are left out, once there is nothing in the way", len(d.Refused()))
	}
	wantAlive(t, conns, "after the second try")
	if _, err := os.Stat(pinsOf(&o).next()); !os.IsNotExist(err) {
		t.Errorf("maps that serve no more: %v", err)
	}
}

// What all Services together want makes maps larger as far as memory goes, and what one
// alone wants does not.
func TestWantedSizes(t *testing.T) {
	r := service.NewResolver(synth.Config())
	r.Apply(synth.Cluster(100, 2))
	p := newPlanner(65536)
	small := DefaultSizes()
	small.Backends = 64
	p.limits = limitsOf(small)
	f := &fakeMaps{contents: newContents()}
	if err := fullSync(t, p, f, r.Table()); err != nil {
		t.Fatal(err)
	}
	want := p.wanted(small)
	if want.Backends != 512 || want.Frontends != small.Frontends || want.Services != small.Services {
		t.Errorf("wanted: %+v", want)
	}
	p.limits = limitsOf(want)
	if err := fullSync(t, p, f, r.Table()); err != nil || len(p.refused) > 0 {
		t.Errorf("%d are left out of maps of the sizes wanted: %v", len(p.refused), err)
	}
	changed, _ := r.Apply(hog(140))
	if _, err := p.planChanged(r.Table(), changed); err != nil || len(p.refused) != 1 {
		t.Errorf("%d are left out, want the one that wants more than its part: %v", len(p.refused), err)
	}
	if got := p.wanted(want); got != want {
		t.Errorf("one Service alone makes maps grow from %+v to %+v", want, got)
	}
	o := Options{Sizes: small, MapMemory: 1 << 40}
	if got, why, err := o.affordable(want); err != nil || got.Backends != 512 || why != "" {
		t.Errorf("with memory: %+v, %q, %v", got, why, err)
	}
	o.MapMemory = 1 << 20
	if got, why, err := o.affordable(want); err != nil || got != small || why == "" {
		t.Errorf("without memory: %+v, %q, %v", got, why, err)
	}
}
