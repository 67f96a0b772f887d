// Command nodeproxy makes the addresses of Kubernetes Services lead to Pods on
// one Linux node.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := newRootCommand().ExecuteContext(ctx)
	if err == nil {
		return
	}
	var exit *exec.ExitError // a command that was run for the user: its status is the answer
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		os.Exit(exit.ExitCode())
	}
	fmt.Fprintln(os.Stderr, "nodeproxy:", err)
	os.Exit(1)
}
