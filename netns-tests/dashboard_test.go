package netnstests

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"github.com/nodeproxy/nodeproxy/deploy"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// panelQuery is one question of the dashboard.
type panelQuery struct {
	where string // the panel's title, and the name of the line
	expr  string
}

func dashboardQueries(t *testing.T) (out []panelQuery) {
	t.Helper()
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	data, err := deploy.Files.ReadFile("chart/files/dashboard.json")
	must(t, err)
	must(t, json.Unmarshal(data, &board))
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "600m", "$instance", ".*").Replace(target.Expr)
			out = append(out, panelQuery{strings.TrimSuffix(p.Title+": "+target.LegendFormat, ": "), expr})
		}
	}
	return out
}

// quiet are the questions whose answer is 0 on a node that is well.
var quiet = []string{"Not healthy", "Source not reached", "Services left out", "Failed syncs and repairs: failed {{instance}}",
	"Failed syncs and repairs: repaired {{instance}}", "Answers of health checks: healthz {{instance}} {{code}}", "Answers of health checks: livez {{instance}} {{code}}"}

// series are what an agent exposes, read some times.
type series struct {
	names  []string // in their order
	values map[string][]string
	reads  int
}

// read adds what a node's agent exposes now, with the label that Prometheus adds.
func (s *series) read(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	for line := range strings.Lines(inPlace(t, l, node, "curl", "-s", "http://127.0.0.1:10249/metrics")) {
		line = strings.TrimSpace(line)
		found := sampleLine.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		name := fmt.Sprintf(`%s{%s}`, found[1], strings.TrimPrefix(found[2]+`,instance="`+node+`"`, ","))
		value, err := strconv.ParseFloat(line[strings.LastIndex(line, " ")+1:], 64)
		must(t, err)
		text := strconv.FormatFloat(value, 'f', -1, 64)
		if math.IsNaN(value) || math.IsInf(value, 0) {
			text = "_"
		}
		if s.values[name] == nil {
			s.names = append(s.names, name)
		}
		for len(s.values[name]) < s.reads {
			s.values[name] = append(s.values[name], "_")
		}
		s.values[name] = append(s.values[name], text)
	}
	s.reads++
}

// unanswered has Prometheus's engine answer questions over what was read, a minute apart,
// and returns those without any number that is at least the given one.
func (s *series) unanswered(t *testing.T, program string, queries []panelQuery, above string) (out []string) {
	t.Helper()
	var input, cases []map[string]any
	for _, name := range s.names {
		input = append(input, map[string]any{"series": name, "values": strings.Join(s.values[name], " ")})
	}
	at := fmt.Sprintf("%dm", s.reads-1)
	for _, q := range queries { // NaN is above nothing
		cases = append(cases, map[string]any{"expr": fmt.Sprintf("(count((%s) %s) > bool 0) or vector(0)", q.expr, above), "eval_time": at,
			"exp_samples": []any{map[string]any{"labels": "{}", "value": 1}}})
	}
	text, err := yaml.Marshal(map[string]any{"evaluation_interval": "1m", "tests": []any{map[string]any{"interval": "1m", "input_series": input, "promql_expr_test": cases}}})
	must(t, err)
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	must(t, os.WriteFile(file, text, 0o644))
	output, err := exec.CommandContext(t.Context(), program, "test", "rules", file).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	failed := 0
	for line := range strings.Lines(string(output)) {
		expr, isCase := strings.CutPrefix(strings.TrimSpace(line), `expr: "`)
		if !isCase {
			continue
		}
		failed++
		for i, q := range queries {
			quoted := strconv.Quote(cases[i]["expr"].(string))
			if strings.HasPrefix(`"`+expr, quoted) && !slices.Contains(out, q.where) {
				out = append(out, q.where)
			}
		}
	}
	if failed != len(out) || (err != nil) != (failed > 0) {
		t.Fatalf("promtool says, of which %d of %d were understood: %v\n%s", len(out), failed, err, output)
	}
	return out
}

// Each line of each panel has data over what an agent of each mode exposes while it
// serves, and a number above 0, but for what only faults bring about. What a mode does not
// have, the dashboard names as the other's.
func TestDashboardHasData(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	program := tool(t, "promtool")
	queries := dashboardQueries(t)
	if len(queries) < 20 {
		t.Fatalf("%d questions only", len(queries))
	}
	for _, mode := range []string{lab.ModeIPTables, lab.ModeEBPF} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := columns[2].up(t, false, "--mode", mode, "--metrics-per-backend", "--sync-period", "2s", "--min-sync-period", "100ms")
			must(t, l.Do("node-a", func() error { return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_acct", []byte("1"), 0) }))
			apply(t, l, find("web"), find("empty"), find("local-b"), find("deny"), find("deny-empty"))
			must(t, l.StartAgent(t.Context(), "node-a"))
			s := &series{values: map[string][]string{}}
			s.read(t, l, "node-a")
			web := find("web")
			web.edit = func(s *corev1.Service, slices []*discoveryv1.EndpointSlice) {
				s.Annotations = map[string]string{"nodeproxy.io/algorithm": "none that is known"}
				for _, slice := range slices {
					slice.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().UTC().Format(time.RFC3339Nano)}
				}
			}
			apply(t, l, web, find("single"))
			eventually(t, patience, func() error { return onNode(t, l, "single node-a", "pod-a1") })
			eventually(t, patience, func() error { return onNode(t, l, "web node-a", everyPod) })
			refusals(t, l)
			eventually(t, 2*patience, func() error {
				s.read(t, l, "node-a")
				missing := s.unanswered(t, program, queries, "> -Inf")
				for _, where := range s.unanswered(t, program, queries, "> 0") {
					if !slices.Contains(quiet, where) && !slices.Contains(missing, where) {
						missing = append(missing, where+" (0)")
					}
				}
				missing = slices.DeleteFunc(missing, func(where string) bool { return mode != lab.ModeEBPF && strings.Contains(where, "(ebpf mode)") })
				if len(missing) > 0 {
					return fmt.Errorf("no data after %d readings: %q", s.reads, missing)
				}
				return nil
			})
			if mode == lab.ModeIPTables { // what is named as ebpf mode's is nothing of this one
				for _, q := range queries {
					if strings.Contains(q.where, "(ebpf mode)") && !slices.Contains(s.unanswered(t, program, []panelQuery{q}, "> -Inf"), q.where) {
						t.Errorf("%s has data in iptables mode", q.where)
					}
				}
			}
		})
	}
}
