package netnstests

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// asked runs a command of nodeproxy beside the agent of node-a, with -o json.
// It returns what it says on standard error.
func asked(t *testing.T, l *lab.Lab, into any, args ...string) (complaint string, err error) {
	t.Helper()
	argv := append([]string{l.Options().Binary}, args...)
	cmd := l.Command(t.Context(), "node-a", append(argv, "-o", "json", "--instance", l.Netns("node-a"))...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if jsonErr := json.Unmarshal(out, into); err == nil && jsonErr != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), jsonErr, out)
	}
	return stderr.String(), err
}

// TestGetShowsTheKernel asks what the kernel holds while the agent runs and
// after it was killed: the frontends with what becomes of packets there, the
// endpoints, the open flows, and who has affinity.
func TestGetShowsTheKernel(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		addForeignRules(t, l, "node-a") // of others: they must not be in the way
		apply(t, l, find("web"), find("affinity"), find("empty"), find("local-both"))
		startAgents(t, l)
		held := holdOver(t, l, echo.TCP, 4, "client", "web node-a", "affinity node-a")
		for _, dead := range []bool{false, true} {
			if dead {
				if err := l.KillAgent("node-a"); err != nil {
					t.Fatal(err)
				}
			}
			for what, check := range map[string]func() (string, error){
				"services": func() (string, error) { return checkServices(t, l) },
				"backends": func() (string, error) { return checkBackends(t, l) },
				"flows":    func() (string, error) { return checkFlows(t, l, held) },
				"affinity": func() (string, error) { return checkAffinity(t, l, held) },
				"status":   func() (string, error) { return checkStatus(t, l, c, dead) },
			} {
				complaint, err := check()
				if err != nil {
					t.Errorf("%s, dead %v: %v", what, dead, err)
				}
				if said := strings.Count(complaint, "\n") == 1 && strings.Contains(complaint, "no agent answers"); said != dead {
					t.Errorf("%s, dead %v: standard error is %q", what, dead, complaint)
				}
				if what == "status" {
					continue
				}
				wide := inPlace(t, l, "node-a", l.Options().Binary, "get", what, "-o", "wide", "--service", "default/affinity", "--instance", l.Netns("node-a"))
				if !strings.Contains(wide, "default/affinity:echo") || strings.Contains(wide, "default/web") || !strings.HasPrefix(wide, "SERVICE") {
					t.Errorf("get %s -o wide:\n%s", what, wide)
				}
			}
		}
		pingAll(t, held)
	})
}

func checkServices(t *testing.T, l *lab.Lab) (string, error) {
	var rows []view.Frontend
	complaint, err := asked(t, l, &rows, "get", "services")
	if err != nil {
		return complaint, err
	}
	want := map[string][3]string{ // by Service, kind and family: from Pods, this node, outside
		"default/web:echo ClusterIP IPv4":        {"translate to 4", "translate to 4, masqueraded", "translate to 4, masqueraded"},
		"default/web:echo NodePort IPv6":         {"translate to 4, masqueraded", "translate to 4, masqueraded", "translate to 4, masqueraded"},
		"default/empty:echo LoadBalancer IPv4":   {"reject", "reject", "reject"},
		"default/local-both:echo NodePort IPv4":  {"translate to 2", "translate to 2, masqueraded", "translate to 1"},
		"default/affinity:echo ExternalIP IPv6":  {"translate to 4, masqueraded", "translate to 4, masqueraded", "translate to 4, masqueraded"},
		"default/local-both:echo ClusterIP IPv6": {"translate to 2", "translate to 2, masqueraded", "translate to 2, masqueraded"},
	}
	for _, r := range rows {
		key := fmt.Sprint(r.Service, " ", r.Kind, " ", r.Family)
		if got := [3]string{r.Pod, r.Node, r.Outside}; want[key] == got && r.Protocol == "TCP" {
			delete(want, key)
		}
		if r.Where == "" || r.Port == 0 || (r.Address == "") != (r.Kind == "NodePort") {
			return complaint, fmt.Errorf("row %+v", r)
		}
	}
	if len(want) > 0 {
		return complaint, fmt.Errorf("there is no %v in\n%+v", want, rows)
	}
	return complaint, nil
}

func checkBackends(t *testing.T, l *lab.Lab) (string, error) {
	var rows []view.Backend
	complaint, err := asked(t, l, &rows, "get", "backends", "--service", "default/local-both:echo")
	if err != nil {
		return complaint, err
	}
	want := map[string]float64{"cluster pod-a1": 0.5, "cluster pod-b1": 0.5, "local pod-a1": 1}
	for _, r := range rows {
		for _, p := range lab.Places() {
			key := r.List + " " + p.Name
			if strings.HasPrefix(r.Address, p.Addr(false).String()+":") && r.Protocol == "TCP" && want[key] > 0 && want[key]-r.Share < 1e-6 {
				delete(want, key)
			}
		}
	}
	if len(want) > 0 || len(rows) != 3*2 {
		return complaint, fmt.Errorf("there is no %v in %d rows\n%+v", want, len(rows), rows)
	}
	return complaint, nil
}

// checkFlows wants a row for each flow that is held.
func checkFlows(t *testing.T, l *lab.Lab, held []heldFlow) (string, error) {
	var rows []view.Flow
	complaint, err := asked(t, l, &rows, "get", "flows")
	if err != nil {
		return complaint, err
	}
	for _, h := range held {
		at := slices.IndexFunc(rows, func(r view.Flow) bool { return r.Source == h.answer.Source })
		if at < 0 {
			return complaint, fmt.Errorf("%s (seen as %s) is not in\n%+v", h.text, h.answer.Source, rows)
		}
		r := rows[at]
		who, _, _ := strings.Cut(h.answer.Name, "/")
		if r.State != "established" || r.Protocol != "TCP" || r.Service == "" || r.Client.Addr() != lab.MustPlace("client").Addr(r.Source.Addr().Is6()) ||
			r.Backend.Addr() != lab.MustPlace(who).Addr(r.Client.Addr().Is6()) {
			return complaint, fmt.Errorf("%s was answered by %s: row %+v", h.text, who, r)
		}
	}
	return complaint, nil
}

func checkAffinity(t *testing.T, l *lab.Lab, held []heldFlow) (string, error) {
	var rows []view.Affinity
	complaint, err := asked(t, l, &rows, "get", "affinity")
	if err != nil {
		return complaint, err
	}
	for _, h := range held {
		if !strings.Contains(h.text, "affinity") {
			continue
		}
		who, _, _ := strings.Cut(h.answer.Name, "/")
		client := lab.MustPlace("client").Addr(h.answer.Source.Addr().Is6())
		if !slices.ContainsFunc(rows, func(r view.Affinity) bool {
			return r.Client == client && r.Service == "default/affinity:echo" && r.Protocol == "TCP" && strings.Contains(r.Backend, lab.MustPlace(who).Addr(client.Is6()).String())
		}) {
			return complaint, fmt.Errorf("%s was answered by %s, which is not in\n%+v", h.text, who, rows)
		}
	}
	return complaint, nil
}

func checkStatus(t *testing.T, l *lab.Lab, c column, dead bool) (string, error) {
	var s admin.Status
	complaint, err := asked(t, l, &s, "status")
	var exit *exec.ExitError
	if dead && errors.As(err, &exit) && exit.ExitCode() == 3 {
		err = nil // that no agent answers is said by the code too
	}
	if err == nil && (s.Mode != c.Mode || s.Dead != dead || s.Services != 4 || s.Backends == 0 || (c.Mode == lab.ModeEBPF) != (len(s.Maps) > 0)) {
		err = fmt.Errorf("%+v", s)
	}
	return complaint, err
}
