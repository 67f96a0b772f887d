package netnstests

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// scenario is a row of the table, for both families and both protocols.
type scenario struct {
	name string
	from string // places, separated by spaces
	// to are Services and where they are dialled, "web cluster, web node-a";
	// see svc.addr. ":81" behind it asks for a port other than 80.
	to string
	// want are the names that must answer, all of them and no other; or one
	// word of refused, dropped, unanswered.
	want   string
	source source
	only   string // "v4", "v6", "tcp", "udp", or several
	sticky bool   // one of want answers, always the same one for each place
}

// Words for scenario.want. Refused is ECONNREFUSED at once; dropped is no
// answer at all; unanswered is any failure: the packet was not ours.
const (
	refused    = "refused"
	dropped    = "dropped"
	unanswered = "unanswered"
)

// source is which source address who answers must see.
type source int

const (
	kept   source = iota // that of who dials
	masked               // one of the node by which the flow came in
)

const (
	// dropTimeout is how long a flow must stay without an answer to count as
	// dropped; one that is answered takes about a millisecond.
	dropTimeout = slowness * 300 * time.Millisecond
	// refusedWithin is what "at once" means (pitfall P32), in the median.
	refusedWithin = slowness * 50 * time.Millisecond
	minTries      = 6
	maxTries      = 400 // so that the last of 20 endpoints is missed once in 10^8 runs
)

// flow is one way to run a row: who dials what and how.
type flow struct {
	scenario
	lab      *lab.Lab
	bridge   bool
	network  echo.Network
	v6       bool
	from     lab.Place
	at       string // where the Service is dialled
	to       netip.AddrPort
	sameName *string // for sticky: who answered first
	// also are addresses of nodes, by name, that they have besides.
	also map[string][]netip.Addr
}

// checks counts the flows that were judged.
var checks atomic.Int64

// runScenarios runs the rows in a lab, each combination of family and
// protocol at the same time as the others.
func runScenarios(t *testing.T, l *lab.Lab, rows []scenario) { scenariosOf(t, l, rows, true) }

// runScenariosInTurn does so one after the other. A part that is parallel waits until all
// tests before it had their turn, and its lab with it.
func runScenariosInTurn(t *testing.T, l *lab.Lab, rows []scenario) { scenariosOf(t, l, rows, false) }

func scenariosOf(t *testing.T, l *lab.Lab, rows []scenario, parallel bool) {
	for _, v6 := range []bool{false, true} {
		for _, network := range []echo.Network{echo.TCP, echo.UDP} {
			family := "v4"
			if v6 {
				family = "v6"
			}
			t.Run(family+"-"+string(network), func(t *testing.T) {
				if parallel {
					t.Parallel()
				}
				for _, row := range rows {
					if row.appliesTo(family, string(network)) {
						t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
							row.run(t, l, network, v6)
						})
					}
				}
			})
		}
	}
}

func (s scenario) appliesTo(family, network string) bool {
	for _, pair := range [][2]string{{"v4", "v6"}, {"tcp", "udp"}} {
		limited := strings.Contains(s.only, pair[0]) || strings.Contains(s.only, pair[1])
		if limited && !strings.Contains(s.only, family) && !strings.Contains(s.only, network) {
			return false
		}
	}
	return true
}

func (s scenario) run(t *testing.T, l *lab.Lab, network echo.Network, v6 bool) {
	for from := range strings.FieldsSeq(s.from) {
		var first string
		for _, to := range strings.Split(s.to, ", ") {
			f := flow{
				scenario: s, lab: l, bridge: l.Options().Bridge, network: network, v6: v6,
				from: lab.MustPlace(from), sameName: &first,
			}
			f.at, f.to = parseTarget(to, v6)
			checks.Add(1)
			if err := f.check(t.Context()); err != nil {
				t.Errorf("%s -> %s (%s) over %s: %v", from, to, f.to, network, err)
			}
		}
	}
}

// parseTarget reads "web cluster" or "web cluster:81".
func parseTarget(text string, v6 bool) (at string, to netip.AddrPort) {
	name, at, _ := strings.Cut(text, " ")
	at, portText, _ := strings.Cut(at, ":")
	port := uint64(80)
	if portText != "" {
		var err error
		if port, err = strconv.ParseUint(portText, 10, 16); err != nil {
			panic(err)
		}
	}
	return at, find(name).addr(at, uint16(port), v6)
}

func (f flow) dial(ctx context.Context) (echo.Answer, error) {
	return f.lab.Dial(ctx, f.from.Name, f.network, f.to)
}

func (f flow) check(ctx context.Context) error {
	switch f.want {
	case refused:
		return f.checkRefused(ctx)
	case dropped, unanswered:
		return f.checkNoAnswer(ctx)
	}
	return f.checkAnswers(ctx)
}

func (f flow) checkAnswers(ctx context.Context) error {
	wanted := strings.Fields(f.want)
	seen := map[string]bool{}
	for try := range maxTries {
		answer, err := f.dial(ctx)
		if err != nil {
			return fmt.Errorf("try %d: %w", try+1, err)
		}
		if !slices.Contains(wanted, answer.Name) {
			return fmt.Errorf("%s answered, want one of %v", answer.Name, wanted)
		}
		if ok := f.seen(answer.Name); !slices.Contains(ok, answer.Source.Addr()) {
			return fmt.Errorf("%s saw source %s, want one of %v", answer.Name, answer.Source.Addr(), ok)
		}
		if f.sticky && *f.sameName == "" {
			*f.sameName = answer.Name
		}
		if f.sticky && *f.sameName != answer.Name {
			return fmt.Errorf("%s answered, and %s before", answer.Name, *f.sameName)
		}
		seen[answer.Name] = true
		if try+1 >= minTries && (len(seen) == len(wanted) || f.sticky) {
			return nil
		}
	}
	return fmt.Errorf("only %v answered %d dials, want all of %v", seen, maxTries, wanted)
}

// seen returns the source addresses of which who answers must see one.
func (f flow) seen(backend string) []netip.Addr {
	entry := f.entry()
	backend, _, _ = strings.Cut(backend, "/") // "pod-a1/7001"
	switch {
	case f.from.Kind == lab.Pod && backend == f.from.Name:
		return f.hairpin()
	case f.from.Kind == lab.Node && entry == f.from.Name:
		// Which of its addresses it has depends on the way to the backend.
		return f.addrsOf(f.from.Name)
	case backend == entry: // on the host's network: see service.Outcome.Masquerade
		return []netip.Addr{f.from.Addr(f.v6)}
	case f.source == masked:
		return f.addrsOf(entry)
	}
	return []netip.Addr{f.from.Addr(f.v6)}
}

// hairpin returns the sources that a Pod may see that reaches itself through a
// Service: its node. Where the mode translates sockets, the packets never
// leave the Pod, and so have its own address, unless they are masqueraded.
func (f flow) hairpin() []netip.Addr {
	list := f.addrsOf(f.entry())
	if (f.at == "cluster" || f.source == kept) && translatesSockets(f.lab) {
		list = append(list, f.from.Addr(f.v6))
	}
	return list
}

// entry returns the node that translates: the one whose address is dialled,
// else that of who dials, else node-a, to which the router leads.
func (f flow) entry() string {
	switch {
	case strings.HasPrefix(f.at, "node-"):
		return f.at
	case f.at == "second" || f.from.Kind == lab.Client:
		return "node-a"
	case f.from.Kind == lab.Pod:
		return f.from.Node
	}
	return f.from.Name
}

// addrsOf are a node's addresses that a Pod may see: with a bridge, that of
// the bridge too.
func (f flow) addrsOf(node string) []netip.Addr {
	list := append([]netip.Addr{lab.MustPlace(node).Addr(f.v6)}, f.also[node]...)
	if f.bridge {
		for _, cidr := range lab.PodCIDRs[node] {
			list = append(list, cidr.Addr().Next())
		}
	}
	return list
}

func (f flow) checkRefused(ctx context.Context) error {
	var took []time.Duration
	for range 5 {
		start := time.Now()
		answer, err := f.dial(ctx)
		took = append(took, time.Since(start))
		if !f.isRefusal(err) {
			return fmt.Errorf("answer %v, error %w; want refused", answer, errOrNone(err))
		}
	}
	slices.Sort(took)
	if median := took[len(took)/2]; median > refusedWithin {
		return fmt.Errorf("refused, but after %s", median)
	}
	return nil
}

// isRefusal reports whether err says refused. What a node's own packet filter
// does to a UDP packet is EPERM for the process that sent it.
func (f flow) isRefusal(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || f.isOwnFilter(err)
}

func (f flow) isOwnFilter(err error) bool {
	return f.from.Kind == lab.Node && f.network == echo.UDP && errors.Is(err, syscall.EPERM)
}

func (f flow) checkNoAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dropTimeout)
	defer cancel()
	answer, err := f.dial(ctx)
	switch {
	case err == nil:
		return fmt.Errorf("%s answered, want %s", answer.Name, f.want)
	case f.want == dropped && !echo.IsTimeout(err) && !f.isOwnFilter(err):
		return fmt.Errorf("%w; want dropped", err)
	}
	return nil
}

var errNone = errors.New("none")

func errOrNone(err error) error {
	if err == nil {
		return errNone
	}
	return err
}

// affinityAnswers returns who answers for the Service with affinity, by client.
func affinityAnswers(t *testing.T, l *lab.Lab) map[string]string {
	t.Helper()
	names := map[string]string{}
	for _, from := range lab.PlacesOf(lab.Pod) {
		for _, v6 := range []bool{false, true} {
			_, to := parseTarget("affinity cluster", v6)
			answer, err := l.Dial(t.Context(), from.Name, echo.TCP, to)
			if err != nil {
				t.Errorf("%s -> %s: %v", from.Name, to, err)
			}
			names[from.Name+" "+to.String()] = answer.Name
		}
	}
	return names
}
