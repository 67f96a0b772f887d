package netnstests

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// TestP57ModeChange changes the mode of both nodes there and back while a
// thousand TCP connections are open and more are made: none may fail, and what
// the old mode had in the kernel is gone while they are open.
func TestP57ModeChange(t *testing.T) {
	eachIPTables(t, func(t *testing.T, c column) {
		l := c.up(t, false, "--drain-poll", "200ms")
		apply(t, l, find("web"), find("local-both"), find("remote"))
		startAgents(t, l)
		modes := []string{lab.ModeEBPF, lab.ModeIPTables}
		for _, mode := range modes {
			held := holdOver(t, l, echo.TCP, 160, "client", "web node-a", "web external", "web balancer", "local-both node-b", "remote node-a")
			held = append(held, holdOver(t, l, echo.TCP, 40, "pod-a1", "web cluster", "web node-b", "remote cluster")...)
			held = append(held, holdOver(t, l, echo.TCP, 40, "node-b", "web cluster", "web external")...)
			streams := []*stream{
				startStream(l, "client", "web node-b", echo.TCP, false), startStream(l, "client", "web external", echo.UDP, true),
				startStream(l, "client", "remote node-a", echo.TCP, true), startStream(l, "client", "local-both node-b", echo.TCP, false),
				startStream(l, "pod-b2", "web cluster", echo.UDP, false), startStream(l, "pod-a2", "web cluster", echo.TCP, true),
				startStream(l, "pod-b2", "web node-a", echo.TCP, false),
				startStream(l, "node-a", "web cluster", echo.TCP, false), startStream(l, "node-b", "remote external", echo.UDP, false),
			}
			for _, node := range lab.PlacesOf(lab.Node) {
				if err := l.StopAgent(node.Name); err != nil {
					t.Fatal(err)
				}
				pingAll(t, held)
				if err := l.StartAgent(t.Context(), node.Name, "--mode", mode); err != nil {
					t.Fatal(err)
				}
				pingAll(t, held)
			}
			for range 3 {
				pingAll(t, held)
			}
			// Conntrack has the flows of both modes: the old one goes while they are open.
			for _, node := range lab.PlacesOf(lab.Node) {
				eventually(t, patience, func() error { return onlyMode(t, l, node.Name, mode) })
			}
			pingAll(t, held)
			for _, s := range streams {
				s.end(t)
			}
			pingAll(t, held)
			t.Logf("to %s: %d connections were open", mode, len(held))
			for _, f := range held {
				if err := f.conn.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// onlyMode returns an error if a node holds what belongs to another mode.
func onlyMode(t *testing.T, l *lab.Lab, node, mode string) error {
	t.Helper()
	if mode == lab.ModeEBPF {
		if strings.Contains(savedRules(t, l, node), "NODEPROXY-") {
			return fmt.Errorf("%s still has chains of iptables mode", node)
		}
		return nil
	}
	if _, err := os.Stat(pinDir(l, node)); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s still has pins of ebpf mode (%w)", node, errOrNone(err))
	}
	return nil
}
