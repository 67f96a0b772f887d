package deploy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// ruleFile is what of a file of Prometheus rules is looked at here.
type ruleFile struct {
	Groups []struct {
		Rules []struct {
			Alert, Expr string
			Labels      map[string]string
			Annotations map[string]string
		}
	}
}

func readRules(t *testing.T) (rules ruleFile) {
	t.Helper()
	data, err := Files.ReadFile("chart/files/rules.yaml")
	if err == nil {
		err = yaml.Unmarshal(data, &rules)
	}
	if err != nil || len(rules.Groups) == 0 {
		t.Fatalf("rules: %v", err)
	}
	return rules
}

// Each alert fires in testdata/rules_test.yaml when it should and not before, as promtool
// finds with the series there.
func TestRulesFire(t *testing.T) {
	rules, err := filepath.Abs("chart/files/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("testdata/rules_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "test.yaml")
	writeFile(t, file, strings.Replace(string(data), "RULES", rules, 1))
	program := tool(t, "promtool")
	run(t, ".", program, "check", "rules", rules)
	run(t, ".", program, "test", "rules", file)

	var tests struct {
		Tests []struct {
			Cases []struct {
				Alert string           `json:"alertname"`
				Fires []map[string]any `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		}
	}
	if err := yaml.Unmarshal(data, &tests); err != nil {
		t.Fatal(err)
	}
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, c := range test.Cases {
			fires[c.Alert] = fires[c.Alert] || len(c.Fires) > 0
			silent[c.Alert] = silent[c.Alert] || len(c.Fires) == 0
		}
	}
	for _, g := range readRules(t).Groups {
		for _, r := range g.Rules {
			if !fires[r.Alert] || !silent[r.Alert] {
				t.Errorf("%s is not tried: fires %t, is silent %t", r.Alert, fires[r.Alert], silent[r.Alert])
			}
			if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s has labels %v, annotations %v", r.Alert, r.Labels, r.Annotations)
			}
		}
	}
}

// Every question of the dashboard is PromQL, and its panels are apart.
func TestDashboardIsWellFormed(t *testing.T) {
	data, err := Files.ReadFile("chart/files/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	type place struct{ X, Y, W, H int }
	var board struct {
		Panels []struct {
			ID          int
			Type, Title string
			Description string
			GridPos     place
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(data, &board); err != nil {
		t.Fatal(err)
	}
	var rules []map[string]string
	ids := map[int]bool{}
	cells := map[[2]int]string{}
	for _, p := range board.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have id %d", p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%q overlaps %q, or is outside", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" && (len(p.Targets) == 0 || p.Description == "") {
			t.Errorf("panel %q asks nothing, or does not say what it shows", p.Title)
		}
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(target.Expr)
			rules = append(rules, map[string]string{"record": "panel:x", "expr": expr, "panel": p.Title})
		}
	}
	if len(rules) < 20 {
		t.Fatalf("%d questions only", len(rules))
	}
	for i := range rules {
		delete(rules[i], "panel")
		rules[i]["record"] = "panel:" + string(rune('a'+i/26)) + string(rune('a'+i%26))
	}
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	writeFile(t, file, string(text))
	run(t, ".", tool(t, "promtool"), "check", "rules", file)
}
