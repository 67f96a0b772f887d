package bench

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Block is a set of cases: all combinations of its values.
type Block struct {
	Families  []int    `json:"families"`
	Services  []int    `json:"services"`
	Paths     []string `json:"paths"`
	Endpoints []int    `json:"endpoints"`
	Positions []string `json:"positions"`
	Works     []string `json:"works"`
}

// Options say what a run measures.
type Options struct {
	Columns []string `json:"columns"`
	Blocks  []Block  `json:"blocks"`
	// Source is where agents have their objects from: SourceFile, or
	// SourceKubernetes for a real API server. kube-proxy knows that one only.
	Source string `json:"source"`
	// Control are works of the control plane, measured with each of
	// ControlServices, but for columns above their limit in MaxServices.
	Control         []string       `json:"control"`
	ControlServices []int          `json:"control_services"`
	MaxServices     map[string]int `json:"max_services"`
	Rounds          int            `json:"rounds"`
	ControlRounds   int            `json:"control_rounds"`
	// Slot is how long one figure is measured; iperf takes whole seconds.
	Slot          time.Duration `json:"slot"`
	Rate          float64       `json:"rate"` // of connect-open, connect-close, churn and restart, per second
	Changes       int           `json:"changes"`
	ChurnDuration time.Duration `json:"churn_duration"`
	// FillerEndpoints is how many endpoints each Service has that is not used.
	FillerEndpoints int `json:"filler_endpoints"`
	// NetworkPlugin gives the nodes the rules that network plugins write, in bare too:
	// Pods are masqueraded towards the outside, so that conntrack sees all packets.
	NetworkPlugin bool `json:"network_plugin,omitempty"`
}

// Sources of objects.
const (
	SourceFile       = "file"
	SourceKubernetes = "kubernetes"
)

// Preset names a set of options.
type Preset string

// The presets.
const (
	Quick   Preset = "quick"   // under three minutes
	Default Preset = "default" // a quarter of an hour, or so
	Full    Preset = "full"    // everything: hours
	Check   Preset = "check"   // what the floors are about
)

// scale is how many Services the columns are asked to bear. iptables has to do
// work for each of 250,000 endpoints; ebpf has maps.
var scale = map[string]int{
	IPTablesNFT: 30000, IPTablesLegacy: 30000, EBPF: 50000, EBPFPackets: 50000, EBPFStack: 50000, EBPFBefore: 50000, EBPFPacketsBefore: 50000,
	KubeProxyIPTables: 30000, KubeProxyNFTables: 30000,
}

// PresetOptions returns the options of a preset.
func PresetOptions(p Preset) Options {
	o := Options{
		Columns: []string{Bare, IPTablesNFT, IPTablesLegacy, EBPF, EBPFPackets}, MaxServices: scale, Source: SourceFile,
		Rounds: 5, ControlRounds: 1, Slot: time.Second, Rate: 500, Changes: 30, ChurnDuration: 15 * time.Second, FillerEndpoints: 5,
	}
	one := func(services []int, paths []string, works ...string) Block {
		return Block{[]int{4}, services, paths, []int{1}, []string{Last}, works}
	}
	ways := []string{PathCluster, PathNodePortLocal, PathNodePortRemote}
	switch p {
	case Quick:
		o.Rounds, o.Slot, o.Changes, o.ChurnDuration = 3, 500*time.Millisecond, 10, 3*time.Second
		o.Blocks = []Block{
			one([]int{1000}, ways, WorkConnect),
			one([]int{1000}, []string{PathCluster}, WorkRequest, WorkDatagram, WorkTCP1),
		}
		o.Control, o.ControlServices = []string{WorkStart, WorkChange, WorkChurn}, []int{1000}
	case Check:
		// Many short rounds: what disturbs one of them disturbs no median.
		o.Rounds, o.Slot, o.Changes = 9, 200*time.Millisecond, 10
		o.Blocks = []Block{
			one([]int{2000}, []string{PathCluster, PathNodePortRemote}, WorkConnect),
			one([]int{2000}, []string{PathCluster}, WorkRequest),
		}
		o.Control, o.ControlServices = []string{WorkChange}, []int{2000}
	case Full:
		counts := []int{1, 100, 1000, 10000, 30000}
		all := append(slices.Clone(ways), PathExternal)
		o.ControlRounds, o.Changes, o.ChurnDuration = 3, 100, time.Minute
		o.Blocks = []Block{
			{[]int{4, 6}, counts, all, []int{1}, []string{Last}, []string{WorkConnect, WorkConnect8, WorkOpen, WorkRequest, WorkDatagram}},
			{[]int{4, 6}, counts, []string{PathCluster, PathNodePortRemote}, []int{1}, []string{First}, []string{WorkConnect, WorkDatagram}},
			{[]int{4}, counts, []string{PathCluster, PathNodePortRemote}, []int{10, 100, 1000}, []string{Last}, []string{WorkConnect, WorkDatagram}},
			{[]int{4, 6}, []int{1, 10000}, all, []int{1}, []string{Last}, []string{WorkTCP1, WorkTCP8, WorkUDP + "100M", WorkUDP + "500M", WorkUDP + "1G"}},
		}
		o.Control, o.ControlServices = controlWorks, append(counts, 50000)
	default:
		o.Blocks = []Block{
			one([]int{1, 1000, 10000, 30000}, ways, WorkConnect),
			one([]int{10000}, []string{PathCluster, PathNodePortRemote}, WorkOpen, WorkRequest, WorkDatagram, WorkTCP1, WorkTCP8),
			one([]int{10000}, []string{PathCluster}, WorkUDP+"500M"),
			one([]int{10000}, []string{PathExternal}, WorkConnect),
			{[]int{4}, []int{10000}, []string{PathCluster}, []int{1, 1000}, []string{First, Last}, []string{WorkConnect}},
			{[]int{6}, []int{1000}, []string{PathCluster, PathNodePortRemote}, []int{1}, []string{Last}, []string{WorkConnect}},
		}
		o.Control, o.ControlServices = controlWorks, []int{1000, 10000}
	}
	return o
}

var (
	controlWorks = []string{WorkStart, WorkChange, WorkChurn, WorkRestart}
	columnNames  = []string{Bare, IPTablesNFT, IPTablesLegacy, EBPF, EBPFPackets, EBPFStack, EBPFBefore, EBPFPacketsBefore, KubeProxyIPTables, KubeProxyNFTables}
	pathNames    = []string{PathCluster, PathNodePortLocal, PathNodePortRemote, PathExternal}
	workNames    = []string{WorkConnect, WorkConnect8, WorkOpen, WorkClose, WorkRequest, WorkDatagram, WorkTCP1, WorkTCP8, WorkIPerf2}
)

// Values returns the values that each list of names in [Options] and [Block] may hold,
// by the name of its field in JSON.
func Values() map[string][]string {
	return map[string][]string{
		"columns": slices.Clone(columnNames), "works": append(slices.Clone(workNames), "none"), "paths": slices.Clone(pathNames),
		"positions": {First, Last}, "control": append(slices.Clone(controlWorks), "none"), "source": {SourceFile, SourceKubernetes},
	}
}

// Validate returns what the user has to mend first.
func (o Options) Validate() error {
	if err := known("column", o.Columns, columnNames); err != nil {
		return err
	}
	if err := known("control plane work", o.Control, controlWorks); err != nil {
		return err
	}
	for _, b := range o.Blocks {
		if err := b.validate(); err != nil {
			return err
		}
	}
	for _, n := range o.ControlServices {
		if n < 1 || n > maxServices {
			return fmt.Errorf("%d Services: use 1 to %d", n, maxServices)
		}
	}
	switch {
	case o.Source != SourceFile && o.Source != SourceKubernetes:
		return fmt.Errorf("source %q: use %s or %s", o.Source, SourceFile, SourceKubernetes)
	case o.Rounds < 1 || o.ControlRounds < 1:
		return fmt.Errorf("%d rounds, %d of the control plane: use 1 or more", o.Rounds, o.ControlRounds)
	case o.Slot < 50*time.Millisecond:
		return fmt.Errorf("%s for one figure: use 50ms or more", o.Slot)
	case o.Rate <= 0:
		return fmt.Errorf("rate %g: use more than 0", o.Rate)
	case o.Changes < 1:
		return fmt.Errorf("%d changes: use 1 or more", o.Changes)
	}
	return nil
}

func (b Block) validate() error {
	if err := known("path", b.Paths, pathNames); err != nil {
		return err
	}
	for _, w := range b.Works {
		rate, udp := strings.CutPrefix(w, WorkUDP)
		if udp && bitRate.MatchString(rate) {
			continue
		}
		if err := known("work", []string{w}, append(workNames, WorkUDP+"RATE")); err != nil {
			return err
		}
	}
	if err := known("position", b.Positions, []string{First, Last}); err != nil {
		return err
	}
	for _, f := range b.Families {
		if f != 4 && f != 6 {
			return fmt.Errorf("family %d: use 4 or 6", f)
		}
	}
	for _, n := range b.Services {
		if n < 1 || n > maxServices {
			return fmt.Errorf("%d Services: use 1 to %d", n, maxServices)
		}
	}
	for _, n := range b.Endpoints {
		if !slices.Contains(endpointCounts, n) {
			return fmt.Errorf("%d endpoints: use one of %v", n, endpointCounts)
		}
	}
	return nil
}

func known(what string, values, valid []string) error {
	for _, v := range values {
		if !slices.Contains(valid, v) {
			return fmt.Errorf("unknown %s %q: use some of %s", what, v, strings.Join(valid, ", "))
		}
	}
	return nil
}

// Step is one figure to be measured.
type Step struct {
	Key
	Round int
}

// Group is what is measured while one set of labs is up: those of all columns
// with one number of Services of one family.
type Group struct {
	Family, Services int
	// Data are in the order in which they are measured: round by round, case by
	// case, the columns of a case in turns.
	Data []Step
	// Control come first as far as they are starts of round 0, which build the
	// labs, and after Data otherwise.
	Control []Step
}

// Columns returns the columns that have a step in the group.
func (g Group) Columns() []string {
	var out []string
	for _, s := range slices.Concat(g.Data, g.Control) {
		if !slices.Contains(out, s.Column) {
			out = append(out, s.Column)
		}
	}
	slices.SortFunc(out, func(a, b string) int {
		return cmp.Compare(slices.Index(columnNames, a), slices.Index(columnNames, b))
	})
	return out
}

// Plan returns the groups of a run, few Services first, without the steps that
// are done and the groups that have none left.
func Plan(o Options, done map[Step]bool) []Group {
	type id struct{ family, services int }
	cases := map[id][]Key{}
	for _, b := range o.Blocks {
		for _, key := range b.cases() {
			at := id{key.Family, key.Services}
			if !slices.Contains(cases[at], key) {
				cases[at] = append(cases[at], key)
			}
		}
	}
	if len(o.Control) > 0 {
		for _, n := range o.ControlServices {
			if at := (id{4, n}); cases[at] == nil {
				cases[at] = []Key{}
			}
		}
	}
	var groups []Group
	for at, keys := range cases {
		g := Group{Family: at.family, Services: at.services, Data: dataSteps(o, keys, done)}
		if at.family == 4 && slices.Contains(o.ControlServices, at.services) {
			g.Control = controlSteps(o, at.services, done)
		}
		if len(g.Data)+len(g.Control) > 0 {
			groups = append(groups, g)
		}
	}
	slices.SortFunc(groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(a.Services, b.Services), cmp.Compare(a.Family, b.Family))
	})
	return groups
}

func (b Block) cases() []Key {
	var out []Key
	for _, family := range b.Families {
		for _, services := range b.Services {
			for _, work := range b.Works {
				for _, path := range b.Paths {
					for _, endpoints := range b.Endpoints {
						if isIPerf(work) && endpoints != 1 {
							continue // its server is at one address
						}
						for _, position := range b.Positions {
							out = append(out, Key{"", family, services, path, endpoints, position, work})
						}
					}
				}
			}
		}
	}
	return out
}

func (o Options) bears(column string, services int) bool {
	limit, ok := o.MaxServices[column]
	return !ok || services <= limit
}

func dataSteps(o Options, cases []Key, done map[Step]bool) []Step {
	var steps []Step
	planned := map[Step]bool{}
	for round := range o.Rounds {
		for i, key := range cases {
			for j := range o.Columns {
				// Who is first has a colder cache, or a warmer CPU.
				key.Column = o.Columns[(i+j+round)%len(o.Columns)]
				step := Step{key, round}
				if key.Column == Bare {
					step.Key = key.BareKey()
				}
				if !o.bears(key.Column, key.Services) || done[step] || planned[step] {
					continue
				}
				planned[step] = true
				steps = append(steps, step)
			}
		}
	}
	return steps
}

func controlSteps(o Options, services int, done map[Step]bool) []Step {
	var steps []Step
	for round := range o.ControlRounds {
		for _, work := range o.Control {
			for j := range o.Columns {
				column := o.Columns[(j+round)%len(o.Columns)]
				step := Step{Key{Column: column, Family: 4, Services: services, Work: work}, round}
				if column != Bare && o.bears(column, services) && !done[step] {
					steps = append(steps, step)
				}
			}
		}
	}
	return steps
}

// Estimate is how long a step takes, roughly, without the building of labs.
func (o Options) Estimate(s Step) time.Duration {
	switch {
	case s.Work == WorkStart:
		return time.Duration(s.Services) * 300 * time.Microsecond
	case s.Work == WorkChange:
		return time.Duration(o.Changes) * 500 * time.Millisecond
	case s.Work == WorkChurn:
		return o.ChurnDuration
	case s.Work == WorkRestart:
		return restartDuration
	case isIPerf(s.Work):
		return max(o.Slot.Truncate(time.Second), time.Second) + 300*time.Millisecond
	}
	return o.Slot + 150*time.Millisecond
}

func isIPerf(work string) bool {
	return work == WorkTCP1 || work == WorkTCP8 || work == WorkIPerf2 || strings.HasPrefix(work, WorkUDP)
}
