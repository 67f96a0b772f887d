// Command nodeproxy makes the addresses of Kubernetes Services lead to Pods on
// one Linux node.
package main

import (
	"context"
	"fmt"
	"os"
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
	code, message := exitOf(err)
	if message != "" {
		fmt.Fprintln(os.Stderr, "nodeproxy:", message)
	}
	os.Exit(code)
}
