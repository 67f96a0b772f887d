package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/nodeproxy/nodeproxy/lab/echo"
)

const (
	// startTimeout bounds how long a Pod's server may take to listen.
	startTimeout = 15 * time.Second
	// PortIPerf is where the Pods' iperf3 servers listen.
	PortIPerf = 5201
	// echoReady is what `lab echo` writes once it listens.
	echoReady = "listening"
)

// startServers starts what every Pod serves and waits until all listen.
func (l *Lab) startServers(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("timed out"))
	defer cancel()
	iperf, iperfErr := exec.LookPath("iperf3")
	var echoes, iperfs []Process
	for _, pod := range PlacesOf(Pod) {
		p, err := l.Start(pod.Name, "echo-"+pod.Name, l.opts.Binary, "lab", "echo", "--name", pod.Name)
		if err != nil {
			return err
		}
		echoes = append(echoes, p)
		if iperfErr != nil {
			continue // not installed: the lab does without
		}
		p, err = l.Start(pod.Name, "iperf3-"+pod.Name, iperf, "-s", "-p", fmt.Sprint(PortIPerf))
		if err != nil {
			return err
		}
		iperfs = append(iperfs, p)
	}
	for _, p := range echoes {
		if err := l.waitForLog(ctx, p, echoReady); err != nil {
			return err
		}
	}
	for _, p := range iperfs {
		if err := l.waitForListener(ctx, p, PortIPerf); err != nil {
			return err
		}
	}
	return nil
}

// waitForListener waits until something listens on a TCP port in the network
// namespace of the process.
func (l *Lab) waitForListener(ctx context.Context, p Process, port int) error {
	suffix := fmt.Sprintf(":%04X", port)
	for p.Running() {
		for _, file := range []string{"tcp", "tcp6"} {
			table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.PID, file))
			if err != nil {
				continue // it has just ended
			}
			for line := range strings.Lines(string(table)) {
				f := strings.Fields(line)
				if len(f) > 3 && strings.HasSuffix(f[1], suffix) && f[3] == "0A" { // TCP_LISTEN
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to listen: %w; its log ends:\n%s", p.Name, context.Cause(ctx), l.logTail(p))
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s ended before it listened; its log ends:\n%s", p.Name, l.logTail(p))
}

// RunEcho is the process of a Pod: it serves under the name until ctx ends.
func RunEcho(ctx context.Context, name string) error {
	return echo.Serve(ctx, name, func() { fmt.Println(echoReady) })
}
