package service

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// ProblemReasons are all that are in the source, and no others: metrics begin with them.
func TestProblemReasonsAreAll(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range regexp.MustCompile(`(?:Problem\{|refuse\()"(\w+)"`).FindAllStringSubmatch(string(data), -1) {
			used[found[1]] = true
			if !slices.Contains(ProblemReasons, found[1]) {
				t.Errorf("%s has the reason %s, which is not listed", name, found[1])
			}
		}
	}
	for _, reason := range ProblemReasons {
		if !used[reason] {
			t.Errorf("nothing has the reason %s", reason)
		}
	}
}
