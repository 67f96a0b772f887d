package netnstests

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// said runs nodeproxy beside the agent of node-a, and returns what it wrote to standard
// error and its exit code.
func said(t *testing.T, l *lab.Lab, args ...string) (stderr string, code int) {
	t.Helper()
	cmd := l.Command(t.Context(), "node-a", append([]string{l.Options().Binary}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return errs.String(), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return errs.String(), 0
}

// oneAgent is a lab with the Service "web" and an agent on node-a.
func oneAgent(t *testing.T) *lab.Lab {
	t.Helper()
	labtest.RequireRoot(t)
	t.Parallel()
	l := columns[0].up(t, false)
	apply(t, l, find("web"))
	if err := l.StartAgent(t.Context(), "node-a"); err != nil {
		t.Fatal(err)
	}
	return l
}

// What is asked of an agent that runs, and cannot be, is said in one line.
func TestMessagesBesideAnAgent(t *testing.T) {
	l := oneAgent(t)
	me := "--instance=" + l.Netns("node-a")
	for args, want := range map[string]struct {
		code int
		text string
	}{
		"get services nope":               {1, "no Service default/nope on this node"},
		"get services --service nope/web": {1, "no Service nope/web on this node"},
		"verify --source file:/missing":   {0, "--source is ignored: an agent runs"},
		"explain svc/nope:80":             {1, "default/nope"},
		"explain svc/web:nope":            {1, "nope"},
		"port-forward svc/nope 8080:80":   {1, "default/nope"},
		"cleanup":                         {1, "an agent runs in this network namespace already: stop it first"},
	} {
		stderr, code := said(t, l, append(strings.Fields(args), me)...)
		if code != want.code || !strings.Contains(stderr, want.text) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, want %d and one line with %q:\n%s", args, code, want.code, want.text, stderr)
		}
	}
	w := startWatch(t, l, "--service", "nope/nope")
	if text := w.stderr.String(); !strings.Contains(text, "no Service nope/nope is on this node yet: waiting for it") {
		t.Errorf("watch says nothing of a Service that is not there: %s", text)
	}
	w.end(t)
	w = startWatch(t, l, "--service", "default/web")
	if text := w.stderr.String(); strings.Contains(text, "waiting for it") {
		t.Errorf("watch says that a Service is not there which is: %s", text)
	}
	w.end(t)
}

// A reader that has seen enough ends a command without a word, whatever writes.
func TestBrokenPipeIsSilent(t *testing.T) {
	l := oneAgent(t)
	me := " --instance " + l.Netns("node-a")
	binary := l.Options().Binary
	for name, command := range map[string]string{
		"get":      binary + " get services -o json" + me,
		"status":   binary + " status -o yaml" + me,
		"help":     binary + " run --help",
		"version":  binary + " version",
		"lab exec": binary + " lab exec node-a --name " + l.Name() + " -- seq 1000000",
	} {
		// The reader is gone before the first byte is written.
		script := "set -o pipefail; (sleep 0.3; " + command + ") | true"
		cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
		cmd.WaitDelay = time.Second
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if len(out) > 0 || err != nil && !errors.As(err, &exit) {
			t.Errorf("%s: %v, want silence:\n%s", name, err, out)
		}
		if exit != nil && exit.ExitCode() != 128+13 {
			t.Errorf("%s: exit code %d, want that of SIGPIPE", name, exit.ExitCode())
		}
		if exit == nil {
			t.Errorf("%s: exit code 0, though nothing could be written", name)
		}
	}
}

// Cleanup says what it removed in each mode, and the second time that nothing was there.
func TestCleanupSaysWhatItRemoved(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"))
		if err := l.StartAgent(t.Context(), "node-a"); err != nil {
			t.Fatal(err)
		}
		if err := l.StopAgent("node-a"); err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{map[string]string{
			"nft": "chains and the jumps to them (iptables-nft -t nat", "legacy": "chains and the jumps to them (iptables-legacy -t nat", "": "attached programs and",
		}[c.Backend], "nothing to remove\n"} {
			out := inPlace(t, l, "node-a", l.Options().Binary, "cleanup", "--instance", l.Netns("node-a"))
			if !strings.Contains(out, want) || strings.Contains(out, "removed") != (i == 0) {
				t.Errorf("cleanup %d: want %q in\n%s", i+1, want, out)
			}
		}
	})
}
