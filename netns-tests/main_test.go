package netnstests

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// parallel is how many tests run at a time unless -parallel says otherwise:
// more than there are CPUs, for most of them wait for something most of the time.
// More than this only makes each of them slower, and some measure times.
const parallel = "3"

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "peer-names" {
		os.Exit(peerNames(os.Args[2], os.Args[3], os.Args[4]))
	}
	if len(os.Args) > 3 && os.Args[1] == "under-seccomp" {
		os.Exit(underSeccomp(os.Args[2], os.Args[3:]))
	}
	if err := flag.Set("test.parallel", parallel); err != nil {
		fmt.Fprintln(os.Stderr, "set -parallel:", err)
		os.Exit(1)
	}
	flag.Parse()
	labtest.Main(m)
}

// column is one way to run the agent: everything must hold in each of them.
type column struct {
	Name      string
	Mode      string
	AgentArgs []string
	// Backend is the iptables back end that the agent uses, "" in eBPF mode.
	Backend string
	// Sockets tells that sockets are translated when they connect.
	Sockets bool
}

var columns = []column{
	{Name: "iptables-nft", Mode: lab.ModeIPTables, AgentArgs: []string{"--iptables-backend", "nft"}, Backend: "nft"},
	{Name: "iptables-legacy", Mode: lab.ModeIPTables, AgentArgs: []string{"--iptables-backend", "legacy"}, Backend: "legacy"},
	{Name: "ebpf", Mode: lab.ModeEBPF, Sockets: true},
	{Name: "ebpf-packets-only", Mode: lab.ModeEBPF, AgentArgs: []string{"--sockets=false"}},
}

// stackColumns are those of eBPF mode with every packet on the stack way. There the
// programs choose the backend, and do nothing else: what that changes, the tables of
// scenarios show.
var stackColumns = []column{
	{Name: "ebpf-stack", Mode: lab.ModeEBPF, Sockets: true, AgentArgs: []string{"--forwarding", "stack"}},
	{Name: "ebpf-stack-packets-only", Mode: lab.ModeEBPF, AgentArgs: []string{"--sockets=false", "--forwarding", "stack"}},
}

// eachColumn runs a test in every column, at the same time.
func eachColumn(t *testing.T, run func(t *testing.T, c column)) {
	eachOf(t, func(column) bool { return true }, run)
}

// eachColumnAndWay runs a test in every column, those of the stack way too.
func eachColumnAndWay(t *testing.T, run func(t *testing.T, c column)) {
	eachIn(t, slices.Concat(columns, stackColumns), run)
}

// eachIPTables runs a test in every column that has rules to look at.
func eachIPTables(t *testing.T, run func(t *testing.T, c column)) {
	eachOf(t, func(c column) bool { return c.Backend != "" }, run)
}

// eachEBPF runs a test in every column that has programs to look at.
func eachEBPF(t *testing.T, run func(t *testing.T, c column)) {
	eachOf(t, func(c column) bool { return c.Mode == lab.ModeEBPF }, run)
}

// eachOf runs a test in the columns that it has a meaning in.
func eachOf(t *testing.T, has func(column) bool, run func(t *testing.T, c column)) {
	eachIn(t, slices.DeleteFunc(slices.Clone(columns), func(c column) bool { return !has(c) }), run)
}

func eachIn(t *testing.T, columns []column, run func(t *testing.T, c column)) {
	labtest.RequireRoot(t)
	t.Parallel()
	for _, c := range columns {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			run(t, c)
		})
	}
}

// up builds a lab for a column, without agents and without any Service.
func (c column) up(t *testing.T, bridge bool, agentArgs ...string) *lab.Lab {
	t.Helper()
	args := []string{
		"--cluster-cidr", lab.ClusterCIDRs[0].String() + "," + lab.ClusterCIDRs[1].String(),
		"--min-sync-period", "100ms", "-v", "1",
	}
	args = append(args, c.AgentArgs...)
	l := labtest.Up(t, lab.Options{Mode: c.Mode, Bridge: bridge, AgentArgs: append(args, agentArgs...)})
	if err := l.Clear(); err != nil {
		t.Fatal(err)
	}
	prepareNodes(t, l)
	return l
}

// prepareNodes sets what tests rely on in the nodes' namespaces: as many ICMP
// errors as there are refusals, and a time stamp in every conntrack entry.
func prepareNodes(t testing.TB, l *lab.Lab) {
	t.Helper()
	for _, node := range lab.PlacesOf(lab.Node) {
		err := l.Do(node.Name, func() error {
			for key, value := range map[string]string{
				"ipv4/icmp_ratemask": "0", "ipv6/icmp/ratemask": "255", // no error is rate limited
				"netfilter/nf_conntrack_timestamp": "1",
			} {
				err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0)
				if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(key, "_timestamp") {
					continue // not every kernel keeps the time of an entry
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// startAgents starts an agent on both nodes.
func startAgents(t testing.TB, l *lab.Lab, args ...string) {
	t.Helper()
	if err := l.StartAgents(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
}
