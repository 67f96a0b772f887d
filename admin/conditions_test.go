package admin

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Each trouble makes its own condition false, and only what keeps the node from
// serving makes it not ready.
func TestConditions(t *testing.T) {
	now := time.Now()
	long := now.Add(-time.Minute)
	for name, c := range map[string]struct {
		spoil  func(*Status)
		ready  string
		kind   string
		reason string
		words  string
	}{
		"well":                {func(*Status) {}, "True", Ready, "Serving", ""},
		"never reached":       {func(s *Status) { s.LastSync, s.SourceProblem = nil, "connection refused" }, "False", Ready, "NothingListed", "connection refused"},
		"not reached now":     {func(s *Status) { s.SourceProblem = "connection refused" }, "True", SourceReached, "CannotRead", "connection refused"},
		"sync failed":         {func(s *Status) { s.LastSync.Error = "refused" }, "False", Synced, "SyncFailed", "refused"},
		"sync hangs":          {func(s *Status) { s.Syncing = &long }, "False", Synced, "SyncHangs", "1m0s"},
		"sync runs":           {func(s *Status) { s.Syncing = &now }, "True", Synced, "KernelUpToDate", ""},
		"data path":           {func(s *Status) { s.DataPath, s.Healthy = "a probe failed", false }, "False", DataPath, "ProbesFail", "a probe failed"},
		"changes wait":        {func(s *Status) { s.Healthy = false }, "False", Ready, "ChangesWait", "two sync periods"},
		"an ignored manifest": {func(s *Status) { s.Ignored = []string{"x.yaml: document 1"} }, "True", NothingIgnored, "PartsIgnored", "x.yaml: document 1"},
		"a refused Service":   {func(s *Status) { s.Problems = make([]Problem, 5) }, "True", NothingIgnored, "PartsIgnored", "and 2 more"},
		"not counted":         {func(s *Status) { s.Uncounted = true }, "True", NothingIgnored, "NotCounted", ""},
	} {
		s := Status{Healthy: true, LastSync: &Sync{At: now}}
		c.spoil(&s)
		s.SetConditions(now)
		got := s.Condition(c.kind)
		if s.Condition(Ready).Status != c.ready || got.Reason != c.reason || !strings.Contains(got.Message, c.words) {
			t.Errorf("%s: %+v, want ready %s and %s because of %s", name, s.Conditions, c.ready, c.kind, c.reason)
		}
	}
}

// The error of an agent that does not answer names a few of those that do, and counts
// the others: there may be hundreds.
func TestNoAgentNamesOthers(t *testing.T) {
	dir := t.TempDir()
	for n, want := range []string{"", "(one does with --instance a0)", "(one does with --instance a0 or --instance a1)", "", "(one does with --instance a0 or --instance a1 or --instance a2 or one of 1 more)"} {
		if got := noAgent(filepath.Join(dir, "x.sock")); !errors.Is(got, ErrNoAgent) || !strings.HasSuffix(got.Error(), want) || strings.Contains(got.Error(), "\n") {
			t.Errorf("with %d others: %v, want %q", n, got, want)
		}
		l, err := net.Listen("unix", filepath.Join(dir, fmt.Sprintf("a%d.sock", n)))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
}
