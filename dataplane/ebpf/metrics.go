package ebpf

import (
	"fmt"
	"strings"
)

// Metric counts packets that met one reason, or socket calls.
type Metric struct {
	// Reason is a name in lower case with underscores, fit for a label:
	// "forwarded", "no_endpoints". bpf/reason.h says what each means.
	Reason string
	// Verdict is what became of the packets: translated, rejected, dropped, answered,
	// passed (left to the stack as they are), or noted: what is counted beside, for
	// packets that have another reason too.
	Verdict string
	Packets uint64
	Bytes   uint64 // from the IP header on; 0 for socket calls
}

// reasonNames are the labels, in the order of enum reason in bpf/reason.h.
var reasonNames = [...]string{"forwarded", "stack", "flow_new", "flow_rebuilt", "no_endpoints", "policy",
	"source_range", "unknown_flow", "unknown_reply", "flows_full", "ports_exhausted", "no_backend",
	"no_source", "no_route", "ttl", "too_big", "unsendable", "fragment_orphan", "fragment_passed",
	"sctp_port", "rewrite", "icmp_translated", "socket_translated", "socket_refused", "socket_aside", "unknown_port", "echo", "forwarded_xdp",
	"martian", "unknown_protocol", "answer_limited", "doubtful",
	"source_share"}

// reasonVerdicts are what bpf/reason.h says of each reason. What is not named is dropped.
var reasonVerdicts = map[string]string{
	"forwarded": "translated", "stack": "translated", "icmp_translated": "translated", "socket_translated": "translated", "forwarded_xdp": "translated",
	"flow_new": "noted", "flow_rebuilt": "noted",
	"no_endpoints": "rejected", "unknown_flow": "rejected", "unknown_port": "rejected", "socket_refused": "rejected",
	"ttl": "answered", "too_big": "answered", "echo": "answered",
	"fragment_passed": "passed", "socket_aside": "passed",
}

func verdictOf(reason string) string {
	if v, ok := reasonVerdicts[reason]; ok {
		return v
	}
	return "dropped"
}

// Two errors of the compiler if enum reason and reasonNames differ in length.
var (
	_ [uint(bpfReasonREASONS) - uint(len(reasonNames))]struct{}
	_ [uint(len(reasonNames)) - uint(bpfReasonREASONS)]struct{}
)

// Metrics sums the counters of all CPUs. They live as long as the maps, beyond
// the process. Safe for concurrent use.
func (d *Dataplane) Metrics() ([]Metric, error) {
	d.inUse.RLock()
	defer d.inUse.RUnlock()
	out := make([]Metric, len(reasonNames))
	for i, name := range reasonNames {
		var perCPU []bpfMetric
		if err := d.objs.Metrics.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("map %s: read %s: %w", bpfMapMetrics, strings.ToUpper(name), err)
		}
		out[i].Reason, out[i].Verdict = name, verdictOf(name)
		for _, m := range perCPU {
			out[i].Packets += m.Packets
			out[i].Bytes += m.Bytes
		}
	}
	return out, nil
}
