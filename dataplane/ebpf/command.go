package ebpf

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// commandLimit is how long a command of iptables may take, and pipePatience how
	// long its output is waited for after it was killed.
	commandLimit = time.Minute
	pipePatience = time.Second
)

// run runs a command and returns what it printed. One that hangs, as for a lock that
// nobody gives back, is killed after limit with whatever it started.
func run(limit time.Duration, input string, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = pipePatience
	cmd.Stdin = strings.NewReader(input)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: it did not end in %v and was killed", name, limit)
	}
	first, _, _ := strings.Cut(strings.TrimSpace(complaint.String()), "\n")
	return nil, fmt.Errorf("%s: %w: %s", name, err, first)
}
