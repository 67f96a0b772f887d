package repo

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var testName = regexp.MustCompile(`\bTest[A-Z]\w+`)

// testFiles returns the text of every test of the repository, by file.
func testFiles(t *testing.T) (texts []string) {
	t.Helper()
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
			texts = append(texts, string(text))
		}
	}
	return texts
}

// testNames are the tests that there are.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	exists := map[string]bool{}
	for _, text := range testFiles(t) {
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(text, -1) {
			exists[m[1]] = true
		}
	}
	return exists
}

// Every fault in docs/neighbours.md names its tests, and dresses of a node, that exist.
func TestFieldReportsNameTheirTests(t *testing.T) {
	exists := testNames(t)
	dresses := map[string]bool{}
	for _, text := range testFiles(t) {
		for _, m := range regexp.MustCompile(`\bname: "([^"]+)",( bridge: true,)? wear: `).FindAllStringSubmatch(text, -1) {
			dresses[strings.ReplaceAll(m[1], " ", "-")] = true
		}
	}
	doc, err := os.ReadFile(filepath.Join(root(t), "docs/neighbours.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(doc)) {
		named := testName.FindAllString(line, -1)
		for _, name := range named {
			if !exists[name] {
				t.Errorf("%s is named, but does not exist: %s", name, line)
			}
		}
		for _, m := range regexp.MustCompile("/\\*/([\\w-]+)`").FindAllStringSubmatch(line, -1) {
			if !dresses[m[1]] {
				t.Errorf("no node is dressed as %s: %s", m[1], line)
			}
		}
		if regexp.MustCompile(`^\| F\d+ \|`).MatchString(line) {
			if rows++; len(named) == 0 {
				t.Errorf("a fault without a test: %s", line)
			}
		}
	}
	if rows < 22 || len(dresses) < 12 {
		t.Errorf("only %d faults and %d dresses were found", rows, len(dresses))
	}
}

// Every rule in docs/semantics.md names its test, and the test exists.
func TestSemanticsNameTheirTests(t *testing.T) {
	exists := testNames(t)
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
