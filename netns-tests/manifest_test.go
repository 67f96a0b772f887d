package netnstests

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// The shipped DaemonSet can end sockets in Pods, with its capabilities, its mounts and
// its PID namespace. Where a line of it is left out, the agent says so when it starts
// and in status, and names the line.
func TestManifestEndsSocketsInPods(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	c := columns[2] // ebpf, with sockets
	for _, test := range []struct {
		name    string
		without string
		says    []string
	}{
		{name: "as shipped"},
		{"no names of namespaces", "netns", []string{"network namespaces", "mountPath: /run/netns", "hostPID: true", "SYS_PTRACE"}},
		{"no SYS_ADMIN", "SYS_ADMIN", []string{"lacks CAP_SYS_ADMIN: add SYS_ADMIN to securityContext.capabilities.add"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := c.up(t, false)
			single := find("single")
			single.endpoints = pods("pod-b1")
			apply(t, l, single)
			said, serves := newAgentPod(t).without(test.without).start(t, l, "node-a")
			if !serves {
				if test.without != "SYS_ADMIN" || !strings.Contains(said.String(), test.says[0]) {
					t.Errorf("the agent has ended:\n%s", said.String())
				}
				return // it says why, and in mode auto takes iptables
			}
			remote, err := l.Dialer("pod-a1")
			must(t, err)
			conn, err := remote.Open(t.Context(), echo.Request{Network: echo.UDP, To: netip.MustParseAddrPort("10.96.0.3:80")})
			must(t, err)
			defer conn.Close()
			if answer, err := conn.Ping(t.Context()); err != nil || answer.Name != "pod-b1" {
				t.Fatalf("%q answers: %v", answer.Name, err)
			}
			status, code := statusOf(t, l)
			for _, text := range test.says {
				if !strings.Contains(said.String(), text) || !strings.Contains(status, text) {
					t.Errorf("%q is not said at the start or in status:\n%s", text, status)
				}
			}
			if wants := len(test.says) > 0; code != 0 || strings.Contains(status, "NOT ended") != wants {
				t.Errorf("status, with exit code %d:\n%s", code, status)
			}
			if len(test.says) > 0 {
				return
			}
			single.endpoints = pods("pod-b2")
			apply(t, l, single)
			eventually(t, patience, func() error {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				answer, err := conn.Ping(ctx)
				if errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EDESTADDRREQ) {
					return nil
				}
				return fmt.Errorf("the socket in pod-a1, whose backend is gone, was not ended: %q answers, %v", answer.Name, err)
			})
			if text := said.String(); strings.Contains(text, "level=WARN") && strings.Contains(text, "sockets") {
				t.Errorf("warnings:\n%s", text)
			}
		})
	}
}
