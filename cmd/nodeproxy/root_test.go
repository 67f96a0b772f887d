package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Every command says what it is for, and shows how.
func TestEveryCommandHasHelpWithExamples(t *testing.T) {
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s: no description", c.CommandPath())
		}
		if c.Runnable() && !c.HasSubCommands() && c.Example == "" && !strings.Contains(c.CommandPath(), " lab") && !strings.Contains(c.CommandPath(), " bench") && c.Name() != "check" {
			t.Errorf("%s: no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check(newRootCommand())
}

func TestManPages(t *testing.T) {
	dir := t.TempDir()
	root := newRootCommand()
	root.SetArgs([]string{"man", dir})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	for page, want := range map[string]string{"nodeproxy.8": "port\\-forward", "nodeproxy-explain.8": "--from pod default/web-1", "nodeproxy-get-flows.8": "conntrack", "nodeproxy-run.8": "metrics-per-backend"} {
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil || !bytes.Contains(bytes.ReplaceAll(text, []byte(`\-`), []byte("-")), []byte(strings.ReplaceAll(want, `\-`, "-"))) {
			t.Errorf("%s: no %q: %v", page, want, err)
		}
	}
}

// The scripts for shells ask the program itself what there is; without an agent
// that is nothing, and no error.
func TestCompletion(t *testing.T) {
	for _, args := range [][]string{{"completion", "bash"}, {"__complete", "port-forward", ""}, {"__complete", "explain", "10."}, {"__complete", "get", "flows", "--service", ""}} {
		root := newRootCommand()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(args)
		if err := root.Execute(); err != nil || out.Len() == 0 {
			t.Errorf("%v: %v: %s", args, err, out.String())
		}
	}
}
