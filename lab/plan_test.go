package lab

import (
	"net/netip"
	"strings"
	"testing"
)

// TestPlan checks what every topology must hold, and what cannot be seen from
// a dial that works: that nothing but the documented routes is there.
func TestPlan(t *testing.T) {
	for _, bridge := range []bool{false, true} {
		plans := makePlan(bridge)
		for _, p := range places {
			plan := plans[p.Name]
			if plan == nil {
				t.Fatalf("bridge=%v: no plan for %s", bridge, p.Name)
			}
			for _, addr := range p.Addrs() {
				if !plan.has(addr) {
					t.Errorf("bridge=%v: %s does not have its address %s", bridge, p.Name, addr)
				}
			}
			for _, r := range plan.routes {
				checkRoute(t, p, r)
			}
		}
		if got := len(plans["node-a"].links); got != map[bool]int{false: 2, true: 3}[bridge] {
			t.Errorf("bridge=%v: node-a makes %d links", bridge, got)
		}
	}
}

func (p *plan) has(addr netip.Addr) bool {
	for _, a := range p.addrs {
		if a.prefix.Addr() == addr {
			return true
		}
	}
	return false
}

func checkRoute(t *testing.T, p Place, r route) {
	t.Helper()
	dst, err := netip.ParsePrefix(r.dst)
	if err != nil {
		t.Errorf("%s: route to %q: %v", p.Name, r.dst, err)
		return
	}
	if dst.Bits() == 0 {
		if p.Kind == Router {
			t.Errorf("the router has a default route: Service addresses would not be unreachable")
		}
		return
	}
	for _, cidr := range ServiceCIDRs {
		if cidr.Overlaps(dst) {
			t.Errorf("%s has a route to Service addresses: %s", p.Name, r.dst)
		}
	}
}

// TestNamesAreUnique checks what taking a lab down by its name relies on: no
// two labs share the name of a namespace, even where one's name continues the
// other's.
func TestNamesAreUnique(t *testing.T) {
	owner := map[string]string{}
	labs := []string{"a", "a-node", "a-pod", "node", "np", "np-a"}
	for _, p := range places {
		labs = append(labs, "a-"+p.Name, p.Name)
	}
	for _, lab := range labs {
		for _, p := range places {
			name := netnsName(lab, p.Name)
			if other, ok := owner[name]; ok {
				t.Errorf("labs %q and %q share %s", lab, other, name)
			}
			owner[name] = lab
		}
	}
}

func TestFindPlace(t *testing.T) {
	if p, err := FindPlace("pod-b2"); err != nil || p.cgroup() != "node-b/pod-b2" {
		t.Errorf("pod-b2: %+v, %v", p, err)
	}
	if p, err := FindPlace("node-a"); err != nil || p.cgroup() != "node-a/host" {
		t.Errorf("node-a: %+v, %v", p, err)
	}
	_, err := FindPlace("moon")
	want := `unknown place "moon": valid are client, router, control-plane, node-a, node-b, pod-a1, pod-a2, pod-b1, pod-b2`
	if err == nil || err.Error() != want {
		t.Errorf("moon: %v, want %s", err, want)
	}
}

func TestOptions(t *testing.T) {
	o := Options{}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	if o.Name != "lab" || o.Dir != "/run/nodeproxy-lab/lab" || o.Mode != "iptables" || o.Binary == "" {
		t.Errorf("defaults: %+v", o)
	}
	for _, name := range []string{"A", "a/b", "..", "-a", "a-", "a b", strings.Repeat("a", 41)} {
		if err := (&Options{Name: name}).complete(); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
}

func TestFlagValue(t *testing.T) {
	for want, args := range map[string][]string{
		"default": {"--v", "2"},
		"ebpf":    {"--mode", "iptables", "--mode=ebpf"},
		"x":       {"--mode=ebpf", "--mode", "x"},
	} {
		if got := flagValue(args, "--mode", "default"); got != want {
			t.Errorf("flagValue(%q) = %q, want %q", args, got, want)
		}
	}
}
