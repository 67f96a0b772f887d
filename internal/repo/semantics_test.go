package repo

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var testName = regexp.MustCompile(`\bTest[A-Z]\w+`)

// Every rule in docs/semantics.md names its test, and the test exists.
func TestSemanticsNameTheirTests(t *testing.T) {
	exists := map[string]bool{}
	for _, dir := range strings.Fields(string(command(t, "go", "list", "-f", "{{.Dir}}", "./..."))) {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(text), -1) {
				exists[m[1]] = true
			}
		}
	}
	doc, err := os.ReadFile(filepath.Join(root(t), "docs/semantics.md"))
	if err != nil {
		t.Fatal(err)
	}
	rules, tested := 0, false
	for line := range strings.Lines(string(doc)) {
		for _, name := range testName.FindAllString(line, -1) {
			if !exists[name] {
				t.Errorf("%s is named, but does not exist: %s", name, line)
			}
		}
		switch cells := strings.Split(strings.TrimSpace(line), " | "); {
		case !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---"):
		case strings.HasSuffix(line, "| test |\n"):
			tested = true
		case strings.HasPrefix(line, "| what |"):
			tested = false // the modes' differences: the netns tests expect them
		case tested:
			rules++
			if last := cells[len(cells)-1]; !strings.Contains(last, "Test") && !strings.Contains(last, "flows") {
				t.Errorf("rule without a test: %s", line)
			}
		}
	}
	if rules < 30 {
		t.Errorf("only %d rules were found", rules)
	}
}
