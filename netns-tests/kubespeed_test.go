package netnstests

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeproxy/nodeproxy/lab/echo"
)

const (
	speedServices  = 10000
	speedEndpoints = 5
	speedChanges   = 21
)

// BenchmarkKubernetes measures one agent beside 10,000 Services of five
// endpoints on a real API server: from its start to traffic through a Service,
// from the PUT of an EndpointSlice to a connection that follows, and its memory.
func BenchmarkKubernetes(b *testing.B) {
	c := upCluster(b)
	start := time.Now()
	must(b, c.create(b.Context(), "many", speedServices, speedEndpoints))
	b.Logf("%d Services in the API server after %s", speedServices, time.Since(start).Round(time.Second))
	s := find("single")
	for _, col := range columns {
		b.Run(col.Name, func(b *testing.B) {
			args := append(slices.Clone(col.AgentArgs), "--mode", col.Mode, "--min-sync-period", "0", "--sync-period", "10m")
			for b.Loop() {
				s.endpoints = pods("pod-a2")
				apply(b, c.Lab, s)
				b.ReportMetric(c.startToTraffic(b, s, args).Seconds(), "start-to-traffic-s")
				took := c.changeToTraffic(b, s)
				b.ReportMetric(median(took).Seconds()*1000, "change-to-traffic-median-ms")
				b.ReportMetric(took[len(took)-1].Seconds()*1000, "change-to-traffic-most-ms")
				agent, _, err := c.Agent("node-a")
				must(b, err)
				for _, what := range []string{"VmRSS", "VmHWM"} {
					b.ReportMetric(processMemory(b, agent.PID, what)/1024, what+"-MiB")
				}
				must(b, c.StopAgent("node-a"))
				inPlace(b, c.Lab, "node-a", c.Options().Binary, "cleanup", "--instance", c.Netns("node-a"))
			}
		})
	}
}

// startToTraffic starts an agent on a node that knows nothing yet.
func (c *cluster) startToTraffic(b *testing.B, s svc, args []string) time.Duration {
	b.Helper()
	start := time.Now()
	started := make(chan error, 1)
	go func() { started <- c.StartAgent(b.Context(), "node-a", args...) }()
	took := c.untilAnswered(b, s, "pod-a2", start, 5*time.Minute)
	must(b, <-started)
	return took
}

// changeToTraffic moves the Service's only endpoint to and fro; the result is sorted.
func (c *cluster) changeToTraffic(b *testing.B, s svc) []time.Duration {
	b.Helper()
	var took []time.Duration
	for i := range speedChanges {
		pod := []string{"pod-b1", "pod-a2"}[i%2]
		s.endpoints = pods(pod)
		time.Sleep(300 * time.Millisecond) // the agent is idle, as between changes
		slice := c.readSlice(b, s)
		slice.Endpoints = s.objects()[1].(*discovery.EndpointSlice).Endpoints
		start := time.Now()
		_, err := c.api.Client.DiscoveryV1().EndpointSlices(slice.Namespace).Update(b.Context(), slice, metav1.UpdateOptions{})
		must(b, err)
		took = append(took, c.untilAnswered(b, s, pod, start, time.Minute))
	}
	slices.Sort(took)
	return took
}

// readSlice returns the first slice of a Service as the API server has it.
func (c *cluster) readSlice(b *testing.B, s svc) *discovery.EndpointSlice {
	b.Helper()
	mine := s.objects()[1].(*discovery.EndpointSlice)
	slice, err := c.api.Client.DiscoveryV1().EndpointSlices(mine.Namespace).Get(b.Context(), mine.Name, metav1.GetOptions{})
	must(b, err)
	return slice
}

func median(sorted []time.Duration) time.Duration { return sorted[len(sorted)/2] }

// untilAnswered dials until a Pod answers.
func (c *cluster) untilAnswered(b *testing.B, s svc, pod string, since time.Time, limit time.Duration) time.Duration {
	b.Helper()
	remote, err := c.Dialer("pod-a1")
	must(b, err)
	for {
		ctx, cancel := context.WithTimeout(b.Context(), 200*time.Millisecond)
		answer, err := remote.Dial(ctx, echo.Request{Network: echo.TCP, To: s.addr("cluster", 80, false)})
		cancel()
		if err == nil && answer.Name == pod {
			return time.Since(since)
		}
		if time.Since(since) > limit {
			b.Fatalf("%s does not answer within %s: %v", pod, limit, err)
		}
		time.Sleep(500 * time.Microsecond)
	}
}

// processMemory reads a line of /proc/PID/status that is in kB.
func processMemory(b *testing.B, pid int, name string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(b, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			must(b, err)
			return kb
		}
	}
	b.Fatalf("no %s in the status of process %d", name, pid)
	return 0
}
