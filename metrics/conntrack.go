package metrics

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Conntrack reports how full the kernel's table of connections is: a full one
// drops packets, of Services and of everything else. Dir is where the sysctls
// are, /proc/sys/net/netfilter.
type Conntrack struct{ Dir string }

var (
	conntrackEntries = prometheus.NewDesc("nodeproxy_conntrack_entries", "Entries in the kernel's table of connections.", nil, nil)
	conntrackLimit   = prometheus.NewDesc("nodeproxy_conntrack_entries_limit", "Entries that the table has room for.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (c Conntrack) Describe(ch chan<- *prometheus.Desc) {
	ch <- conntrackEntries
	ch <- conntrackLimit
}

// Collect implements [prometheus.Collector]. Without conntrack there is
// nothing to report.
func (c Conntrack) Collect(ch chan<- prometheus.Metric) {
	for name, desc := range map[string]*prometheus.Desc{"nf_conntrack_count": conntrackEntries, "nf_conntrack_max": conntrackLimit} {
		text, err := os.ReadFile(filepath.Join(c.Dir, name))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64); err == nil {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, n)
		}
	}
}
