package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// commandLimit is how long a command of iptables may take: 50,000 Services are
	// written in a quarter of it. One that hangs must not stop the agent for good.
	commandLimit = time.Minute
	// pipePatience is how long output is waited for that a command which was killed
	// left to a child of its own.
	pipePatience = time.Second
)

// errTooLong is why a command was ended.
var errTooLong = errors.New("it did not end in time and was killed")

// run runs a command to its end and returns what it printed. An error names the
// command, and the first lines that it complained with. The command and whatever
// it started are killed when ctx ends, or after limit.
func run(ctx context.Context, limit time.Duration, input []byte, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTooLong)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pipePatience
	cmd.Stdin = bytes.NewReader(input)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	name := filepath.Base(path)
	if cause := context.Cause(ctx); errors.Is(cause, errTooLong) {
		return nil, fmt.Errorf("%s, in %v: %w", name, limit, errTooLong)
	}
	if text := firstLines(complaint.String(), 3); text != "" {
		return nil, fmt.Errorf("%s: %w: %s", name, err, text)
	}
	return nil, fmt.Errorf("%s: %w", name, err)
}

func firstLines(s string, n int) string {
	lines := strings.SplitN(strings.TrimSpace(s), "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "; ")
}
