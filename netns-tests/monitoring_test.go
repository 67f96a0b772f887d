package netnstests

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/deploy"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// exposed are the metrics of an agent: the labels of each by its name, and its type.
type exposed struct {
	labels map[string][]string
	kind   map[string]string
}

var sampleLine = regexp.MustCompile(`^([a-z_0-9]+)(?:\{(.*)\})? \S+$`)

// scrape adds what a node's agent exposes.
func (e *exposed) scrape(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	for line := range strings.Lines(inPlace(t, l, node, "curl", "-s", "http://127.0.0.1:10249/metrics")) {
		line = strings.TrimSpace(line)
		if words := strings.Fields(line); len(words) == 4 && words[1] == "TYPE" {
			e.kind[words[2]] = words[3]
		}
		found := sampleLine.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		labels := e.labels[found[1]]
		for _, label := range regexp.MustCompile(`([a-z_]+)="`).FindAllStringSubmatch(found[2], -1) {
			if !slices.Contains(labels, label[1]) {
				labels = append(labels, label[1])
			}
		}
		e.labels[found[1]] = labels
	}
}

// kitQuestions are all PromQL expressions of the rules and the dashboard, by where they are.
func kitQuestions(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	data, err := deploy.Files.ReadFile("chart/files/rules.yaml")
	must(t, err)
	must(t, yaml.Unmarshal(data, &rules))
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			out["alert "+r.Alert] = r.Expr
		}
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	data, err = deploy.Files.ReadFile("chart/files/dashboard.json")
	must(t, err)
	must(t, json.Unmarshal(data, &board))
	for _, p := range board.Panels {
		for i, target := range p.Targets {
			out[fmt.Sprintf("panel %s %d", p.Title, i)] = target.Expr
		}
	}
	return out
}

var (
	metricName = regexp.MustCompile(`\b(?:nodeproxy|kubeproxy|process|go)_[a-z_]+\b`)
	selector   = regexp.MustCompile(`\b((?:nodeproxy|kubeproxy|process|go)_[a-z_]+)\{([^}]*)\}`)
	grouping   = regexp.MustCompile(`\b(?:by|on) \(([a-z_, ]+)\)`)
	matcher    = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
)

// The rules and the dashboard ask for metrics and labels that an agent of some mode
// really exposes, from its first sync on, before any traffic; and so does the
// documentation. Nothing is exposed that is not documented.
func TestMonitoringKitAsksForWhatIsExposed(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	l := columns[2].up(t, false, "--metrics-per-backend") // ebpf
	apply(t, l, find("web"))
	must(t, l.StartAgent(t.Context(), "node-a"))
	must(t, l.Do("node-b", func() error { return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_acct", []byte("1"), 0) }))
	must(t, l.StartAgent(t.Context(), "node-b", "--mode", "iptables"))
	e := &exposed{map[string][]string{}, map[string]string{}}
	e.scrape(t, l, "node-a")
	e.scrape(t, l, "node-b")

	has := func(where, metric string, labels ...string) {
		t.Helper()
		found, ok := e.labels[metric]
		if !ok {
			t.Errorf("%s: no agent exposes %s", where, metric)
			return
		}
		for _, label := range labels {
			if !slices.Contains(found, label) && label != "instance" && label != "le" {
				t.Errorf("%s: %s has no label %s", where, metric, label)
			}
		}
	}
	asked := kitQuestions(t)
	if len(asked) < 35 {
		t.Errorf("%d questions only", len(asked))
	}
	for where, expr := range asked {
		names := metricName.FindAllString(expr, -1)
		if len(names) == 0 {
			t.Errorf("%s asks for no metric of ours: %s", where, expr)
		}
		for _, name := range names {
			has(where, name)
		}
		for _, s := range selector.FindAllStringSubmatch(expr, -1) {
			for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
				has(where, s[1], m[1])
			}
		}
		for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
			has(where, names[0], strings.Fields(strings.ReplaceAll(g[1], ",", " "))...)
		}
	}

	text, err := os.ReadFile("../docs/operations.md")
	must(t, err)
	documented := regexp.MustCompile("`((?:nodeproxy|kubeproxy)_[a-z_]+)[`{]").FindAllStringSubmatch(string(text), -1)
	if len(documented) < 20 {
		t.Fatalf("%d metrics in docs/operations.md", len(documented))
	}
	for _, d := range documented {
		if _, histogram := e.labels[d[1]+"_count"]; !histogram {
			has("docs/operations.md", d[1])
		}
	}
	for name, kind := range e.kind {
		if ours := strings.HasPrefix(name, "nodeproxy_") || strings.HasPrefix(name, "kubeproxy_"); ours && !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/operations.md does not have the %s %s", kind, name)
		}
	}
}
