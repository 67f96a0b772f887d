package main

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// printed is what a command line prints.
func printed(t *testing.T, args ...string) string {
	t.Helper()
	root := newRootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(args)
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return out.String()
}

// The version is the same in each way of asking, and readable for programs.
func TestVersionIsPrintedForPeopleAndPrograms(t *testing.T) {
	before := version
	t.Cleanup(func() { version = before })
	version = "v9.8.7"
	want := versions{"9.8.7", revision(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
	var got versions
	if err := json.Unmarshal([]byte(printed(t, "version", "-o", "json")), &got); err != nil || got != want {
		t.Errorf("json: %+v, %v; want %+v", got, err, want)
	}
	got = versions{}
	if err := yaml.UnmarshalStrict([]byte(printed(t, "version", "-o", "yaml")), &got); err != nil || got != want {
		t.Errorf("yaml: %+v, %v; want %+v", got, err, want)
	}
	text := printed(t, "version")
	if text != printed(t, "--version") || strings.TrimSpace(text) != "nodeproxy 9.8.7 ("+runtime.Version()+")" {
		t.Errorf("version prints %q, and --version %q", text, printed(t, "--version"))
	}
}
