// Package command runs other programs for the modes: with a deadline, and with all that
// they start.
package command

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

// ErrTooLong is why a command was ended.
var ErrTooLong = errors.New("it did not end in time and was killed")

// pipePatience is how long output is waited for that a command which was killed left to
// a child of its own.
const pipePatience = time.Second

// Run runs a command to its end and returns what it printed. An error names the
// command, and the first lines that it complained with. The command and all that it
// started are killed when ctx ends, or after limit. It may be used concurrently.
func Run(ctx context.Context, limit time.Duration, input []byte, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrTooLong)
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
	if cause := context.Cause(ctx); errors.Is(cause, ErrTooLong) {
		return nil, fmt.Errorf("%s, in %v: %w", name, limit, ErrTooLong)
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
