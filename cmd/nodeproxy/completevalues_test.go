package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nodeproxy/nodeproxy/admin"
)

// complete returns what a shell is told for a command line, its last word begun.
func complete(t *testing.T, words ...string) (values []string, directive string) {
	t.Helper()
	root := newRootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&bytes.Buffer{})
	root.SetArgs(append([]string{cobra.ShellCompNoDescRequestCmd}, words...))
	if err := root.ExecuteContext(context.Background()); err != nil {
		t.Fatalf("%v: %v", words, err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	return lines[:len(lines)-1], lines[len(lines)-1]
}

// eachCommand visits all commands with their words.
func eachCommand(c *cobra.Command, words []string, do func(*cobra.Command, []string)) {
	do(c, words)
	for _, sub := range c.Commands() {
		eachCommand(sub, append(slices.Clone(words), sub.Name()), do)
	}
}

// No flag but one of a path, and no argument but a file, is completed with the names of
// files; and each choice that is offered for a flag is in what its help or its
// refusal of another value names.
func TestEveryFlagAndArgumentIsCompleted(t *testing.T) {
	const files = ":0"
	flags := 0
	eachCommand(newRootCommand(), nil, func(c *cobra.Command, words []string) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.NoOptDefVal != "" || f.Hidden {
				return // a switch
			}
			flags++
			values, directive := complete(t, append(slices.Clone(words), "--"+f.Name, "")...)
			if got, want := directive == files, slices.Contains(pathFlags, f.Name); got != want {
				t.Errorf("%v --%s: completes files: %v, want %v", words, f.Name, got, want)
			}
			for _, v := range choicesOf(c, f.Name) {
				if !slices.Contains(values, v) {
					t.Errorf("%v --%s: %q is not among %q", words, f.Name, v, values)
				}
			}
		})
		if c.HasSubCommands() || c.Name() == "exec" {
			return
		}
		if _, directive := complete(t, append(slices.Clone(words), "")...); (directive == files) != takesFiles(c) {
			t.Errorf("%v: directive %s, completes files: want %v", words, directive, takesFiles(c))
		}
	})
	if flags < 100 {
		t.Errorf("%d flags were looked at", flags)
	}
}

func TestCompletedValues(t *testing.T) {
	for line, want := range map[string][]string{
		"run --mode ":             {"auto", "iptables", "ebpf"},
		"run --mode e":            {"ebpf"},
		"lab up --mode ":          {"iptables", "ebpf"},
		"status -o ":              {"wide", "json", "yaml"},
		"watch -o ":               {"json"},
		"top --sort ":             {"connections", "bytes", "drops", "name"},
		"run --forwarding ":       {"auto", "fast", "stack"},
		"bench --columns ebpf":    {"ebpf", "ebpf-packets", "ebpf-stack", "ebpf-before", "ebpf-packets-before"},
		"bench --paths cluster,n": {"cluster,nodeport-local", "cluster,nodeport-remote"},
		"run --source k":          {"kubernetes"},
		"lab exec node-":          {"node-a", "node-b"},
		"lab demo --source ":      {"file", "kubernetes"},
	} {
		words := strings.Fields(line)
		if strings.HasSuffix(line, " ") {
			words = append(words, "")
		}
		if got, _ := complete(t, words...); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// Every choice that is offered for a flag of run is one that run takes.
func TestOfferedChoicesAreTaken(t *testing.T) {
	dir := t.TempDir()
	run := newRunCommand()
	for flag, values := range flagChoices {
		if strings.Contains(flag, " ") || run.Flags().Lookup(flag) == nil || flag == "source" {
			continue
		}
		for _, v := range values {
			args := []string{"--source=file:" + dir, "--" + flag + "=" + v, "--pod-bridge-interface=br0", "--pod-interface-name-prefix=veth"}
			o, err := parse(t, args...)
			if err == nil {
				_, err = o.node()
			}
			if err == nil {
				_, err = newLogger(o.logFormat, 0)
			}
			if err != nil {
				t.Errorf("--%s %s: %v", flag, v, err)
			}
		}
	}
}

// --instance offers those that answer, and where none answers of a name, the error
// lists them. A socket without a process is no agent.
func TestInstancesThatAnswerAreOffered(t *testing.T) {
	if err := os.MkdirAll(admin.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(admin.Dir) // if it was not there before, and is empty
	name := "np-complete-" + filepath.Base(t.TempDir())
	agent, err := net.Listen("unix", admin.Socket(name))
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: admin.Socket(name + "-dead"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	defer os.Remove(admin.Socket(name + "-dead"))
	values, _ := complete(t, "status", "--instance", "")
	if !slices.Contains(values, name) || slices.Contains(values, name+"-dead") {
		t.Errorf("offered %q, want %s and none that is dead", values, name)
	}
	err = admin.Get(t.Context(), admin.Socket(name+"-other"), "/v1/status", nil, &struct{}{})
	if err == nil || !strings.Contains(err.Error(), "--instance "+name) || strings.Contains(err.Error(), name+"-dead ") {
		t.Errorf("%v, want a word of --instance %s", err, name)
	}
}
