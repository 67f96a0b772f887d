package main

import (
	"context"
	"log/slog"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
)

// counter is a mode that counts the traffic of Services.
type counter interface {
	Counts(context.Context) ([]view.Count, error)
}

// trafficCollector reads what a mode counts by Service when it is asked.
type trafficCollector struct {
	from counter
	// perBackend adds a set of series for each backend of each Service: at 10,000
	// Services of five endpoints that is a quarter of a million, so it has to be
	// asked for.
	perBackend bool
	log        *slog.Logger
}

var (
	serviceLabels = []string{"namespace", "service", "port", "protocol", "ip_family"}
	backendLabels = append(slices.Clone(serviceLabels), "backend")

	descFlows = desc("service_flows_total", "New flows, by Service port and outcome.",
		append(slices.Clone(serviceLabels), "outcome")...)
	descServicePackets = desc("service_packets_total", "Packets of translated flows, by port of a Service.",
		append(slices.Clone(serviceLabels), "direction")...)
	descServiceBytes = desc("service_bytes_total", "Bytes of these packets, from the IP header on.",
		append(slices.Clone(serviceLabels), "direction")...)
	descBackendFlows = desc("backend_flows_total", "New flows, by backend of a Service port and outcome.",
		append(slices.Clone(backendLabels), "outcome")...)
	descBackendPackets = desc("backend_packets_total", "Packets of translated flows, by backend of a port of a Service.",
		append(slices.Clone(backendLabels), "direction")...)
	descBackendBytes = desc("backend_bytes_total", "Bytes of these packets, from the IP header on.",
		append(slices.Clone(backendLabels), "direction")...)

	directions = [2]string{"to_backend", "to_client"}
)

// Describe implements [prometheus.Collector].
func (c *trafficCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descFlows, descServicePackets, descServiceBytes, descBackendFlows, descBackendPackets, descBackendBytes} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *trafficCollector) Collect(ch chan<- prometheus.Metric) {
	rows, err := c.from.Counts(context.Background())
	if err != nil {
		c.log.Warn("metrics by Service are left out", "error", err)
		return
	}
	for _, r := range rows {
		labels := []string{r.Service.Namespace, r.Service.Name.Name, r.Service.Port, r.Protocol, r.FamilyIs}
		sendTraffic(ch, &r.Traffic, !r.NoBytes, labels, descFlows, descServicePackets, descServiceBytes)
		if !c.perBackend {
			continue
		}
		for _, b := range r.Backends {
			sendTraffic(ch, &b.Traffic, !r.NoBytes, append(slices.Clone(labels), b.Address), descBackendFlows, descBackendPackets, descBackendBytes)
		}
	}
}

// sendTraffic sends one set of series, those of 0 too, so that the first packet is an
// increase. What nobody counts has no series.
func sendTraffic(ch chan<- prometheus.Metric, t *view.Traffic, counted bool, labels []string, flows, packets, bytes *prometheus.Desc) {
	send := func(d *prometheus.Desc, n uint64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), append(slices.Clone(labels), label)...)
	}
	send(flows, t.Connections, "translated")
	send(flows, t.Drops, "refused")
	for i, direction := range directions {
		if counted {
			send(packets, t.Packets[i], direction)
			send(bytes, t.Bytes[i], direction)
		}
	}
}
