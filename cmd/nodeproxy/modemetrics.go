package main

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nodeproxy/nodeproxy/dataplane"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
)

// modeCollectors return what a mode counts in the kernel.
func modeCollectors(dp dataplane.Dataplane, perBackend bool, log *slog.Logger) []prometheus.Collector {
	var all []prometheus.Collector
	if d, ok := inner(dp).(*ebpf.Dataplane); ok {
		all = append(all, &ebpfCollector{d, log})
	}
	if d, ok := inner(dp).(counter); ok {
		all = append(all, &trafficCollector{d, perBackend, log})
	}
	return all
}

// inner is the mode itself, without what is wrapped around it.
func inner(dp dataplane.Dataplane) dataplane.Dataplane {
	for {
		w, ok := dp.(interface{ Mode() dataplane.Dataplane })
		if !ok {
			return dp
		}
		dp = w.Mode()
	}
}

// ebpfCollector reads the programs' counters when it is asked.
type ebpfCollector struct {
	dp  *ebpf.Dataplane
	log *slog.Logger
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("nodeproxy_"+name, help, labels, nil)
}

var (
	descPackets = desc("packets_total", "Packets and socket calls by what became of them, and why.", "verdict", "reason")
	descBytes   = desc("bytes_total", "Bytes of the packets in nodeproxy_packets_total, from the IP header on.", "verdict", "reason")
	descEntries = desc("map_entries", "Entries of a BPF map.", "map")
	descLimit   = desc("map_entries_limit", "Entries that a BPF map has room for.", "map")
	descMemory  = desc("map_memory_bytes", "Memory that a BPF map takes.", "map")
)

// Describe implements [prometheus.Collector].
func (c *ebpfCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descPackets, descBytes, descEntries, descLimit, descMemory} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *ebpfCollector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	reasons, err := c.dp.Metrics()
	if err != nil {
		c.log.Warn("metrics by reason are left out", "error", err)
	}
	for _, m := range reasons {
		counter(descPackets, m.Packets, m.Verdict, m.Reason)
		counter(descBytes, m.Bytes, m.Verdict, m.Reason)
	}
	uses, err := c.dp.MapUses()
	if err != nil {
		c.log.Warn("metrics of maps are left out", "error", err)
	}
	for _, u := range uses {
		gauge(descEntries, u.Entries, u.Name)
		gauge(descLimit, u.Limit, u.Name)
		if u.Memory > 0 {
			gauge(descMemory, u.Memory, u.Name)
		}
	}
}
