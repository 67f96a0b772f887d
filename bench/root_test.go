package bench

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// TestMain also checks that nothing of the labs is left at the end.
func TestMain(m *testing.M) { labtest.Main(m) }

func benchCommand(t *testing.T, name, dir string, args ...string) *exec.Cmd {
	argv := append([]string{"bench", "--lab", name, "--out", dir}, args...)
	return exec.CommandContext(t.Context(), labtest.Binary(t), argv...)
}

// gone fails if anything of a run's labs is left.
func gone(t *testing.T, name string) {
	t.Helper()
	traces, err := labtest.Traces()
	if err != nil {
		t.Fatal(err)
	}
	for _, trace := range traces {
		if strings.Contains(trace, name+"-") {
			t.Errorf("left behind: %s", trace)
		}
	}
}

// A run writes its files, also one that was cut short and resumed, and leaves
// nothing else.
func TestRun(t *testing.T) {
	labtest.RequireRoot(t)
	name, dir := labtest.Name(), t.TempDir()
	cmd := benchCommand(t, name, dir, "--columns", "bare,iptables-nft,ebpf", "--services", "30", "--works", "connect,request,datagram,udp@50M",
		"--paths", "nodeport-remote", "--endpoints", "1", "--positions", "first", "--families", "4,6", "--rounds", "1", "--slot", "50ms",
		"--control", "start,change,churn,restart", "--changes", "2", "--churn-duration", "300ms")
	var log watched
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log.await(t, "3/", 60*time.Second)
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(log.String(), "--resume goes on") {
		t.Fatalf("after ^C: %v\n%s", err, &log)
	}
	gone(t, name)

	out, err := benchCommand(t, name, dir, "--resume").CombinedOutput()
	if err != nil {
		t.Fatalf("resume: %v\n%s", err, out)
	}
	gone(t, name)
	path, err := LatestFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	run, samples, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[Step]bool{}
	for _, g := range Plan(run.Options, nil) {
		for _, s := range slices.Concat(g.Data, g.Control) {
			want[s] = true
		}
	}
	for _, s := range samples {
		if step := (Step{s.Key, s.Round}); !want[step] {
			t.Errorf("%v was measured twice, or not planned", s.Key)
		} else {
			delete(want, step)
		}
		if s.Error != "" || s.Value < 0 || s.Value == 0 && s.Unit != "%" {
			t.Errorf("%v: %g %s %s", s.Key, s.Value, s.Unit, s.Error)
		}
	}
	for step := range want {
		t.Errorf("%v was not measured", step.Key)
	}
	page, err := os.ReadFile(strings.TrimSuffix(path, filepath.Ext(path)) + ".html")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(page, []byte("<svg")); n < 8 {
		t.Errorf("the page has %d charts", n)
	}
	for _, text := range []string{"src=", "href=\"http", "url(", "@import", "<script"} {
		if bytes.Contains(page, []byte(text)) {
			t.Errorf("the page contains %s: it shall need nothing else", text)
		}
	}
}

// A mistake gets one line, before anything is built.
func TestMistakes(t *testing.T) {
	labtest.RequireRoot(t)
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"--columns", "ipvs"}, "unknown column"},
		{[]string{"--columns", "kube-proxy-nftables"}, "needs --kube-proxy"},
		{[]string{"--works", "udp@x"}, "unknown work"},
		{[]string{"--resume"}, "no result file"},
	} {
		out, err := benchCommand(t, labtest.Name(), t.TempDir(), tc.args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), tc.want) || bytes.Count(out, []byte("\n")) != 1 {
			t.Errorf("%v: error %v, want one line with %q, not:\n%s", tc.args, err, tc.want, out)
		}
	}
}

// watched is written by a command and read by a test.
type watched struct {
	mu  sync.Mutex // guards buf
	buf strings.Builder
}

// Write implements io.Writer.
func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

// String returns what was written so far.
func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

func (w *watched) await(t *testing.T, text string, patience time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(w.String(), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q was not written within %s:\n%s", text, patience, w)
		}
	}
}

func TestStale(t *testing.T) {
	got := stale([]string{"lab", "bench-1-1", "bench-1-2", "bench-2-1", "bench-x", "t1-2"}, func(pid string) bool { return pid == "2" })
	if !slices.Equal(got, []string{"bench-1-1", "bench-1-2"}) {
		t.Errorf("got %v", got)
	}
}
