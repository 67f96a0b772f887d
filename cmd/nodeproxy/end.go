package main

import (
	"context"
	"log/slog"
	"os"
	"time"
)

// endPatience is how long an agent may take to end once it is told to. Kubernetes
// and systemd kill what takes longer than their own patience, and a file system
// or a kernel that does not answer must not use that up.
const endPatience = 4 * time.Second

// endInTime ends the process some time after ctx, whatever it waits for then: the
// kernel keeps translating, and the next agent compares everything. What it
// returns calls that off.
func endInTime(ctx context.Context, log *slog.Logger) (cancel func()) {
	done := make(chan struct{})
	context.AfterFunc(ctx, func() {
		select {
		case <-done:
		case <-time.After(endPatience):
			log.Error("not ready to stop in time; ending all the same, translation stays in place", "patience", endPatience)
			os.Exit(1)
		}
	})
	return func() { close(done) }
}
