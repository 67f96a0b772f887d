package bench

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeproxy/nodeproxy/bench/load"
)

func TestSummarize(t *testing.T) {
	for _, tc := range []struct {
		values []float64
		want   Summary
	}{
		{nil, Summary{}},
		{[]float64{3}, Summary{1, 3, 3, 3, 3, 3}},
		{[]float64{4, 1, 3, 2}, Summary{4, 2.5, 1, 4, 1.75, 3.25}},
		{[]float64{9, 1, 5, 3, 7}, Summary{5, 5, 1, 9, 3, 7}},
	} {
		if diff := cmp.Diff(tc.want, Summarize(tc.values), cmpopts.EquateApprox(0, 1e-9)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tc.values, diff)
		}
	}
}

// of returns a sample of a case of few words.
func of(column string, round int, value float64) Sample {
	k := Key{column, 4, 10, PathCluster, 1, Last, WorkConnect}
	if column == Bare {
		k = k.BareKey()
	}
	return Sample{Key: k, Round: round, Value: value, Unit: "/s"}
}

// A machine that is slow in one round does not change a ratio.
func TestRatiosAreOfTheSameRound(t *testing.T) {
	table := NewTable([]Sample{
		of(Bare, 0, 100), of(EBPF, 0, 90), of(Bare, 1, 10), of(EBPF, 1, 9), of(EBPF, 2, 500),
		{Key: of(Bare, 3, 0).Key, Round: 3, Error: "no"}, of(EBPF, 3, 1),
	})
	got := table.OfBare(of(EBPF, 0, 0).Key)
	if got.N != 2 || math.Abs(got.Median-0.9) > 1e-9 || got.Min != got.Max {
		t.Errorf("got %+v, want 0.9 twice", got)
	}
}

func testOptions() Options {
	o := PresetOptions(Quick)
	o.Columns = []string{Bare, IPTablesNFT, EBPF}
	o.Rounds, o.ControlRounds = 2, 2
	o.Blocks = []Block{
		{[]int{4}, []int{10}, []string{PathCluster}, []int{1, 10}, []string{Last}, []string{WorkConnect}},
		{[]int{4}, []int{10, 40000}, []string{PathCluster}, []int{1}, []string{Last}, []string{WorkConnect}},
	}
	o.Control, o.ControlServices = []string{WorkStart, WorkChange}, []int{10}
	return o
}

func TestPlan(t *testing.T) {
	groups := Plan(testOptions(), nil)
	if len(groups) != 2 || groups[0].Services != 10 || groups[1].Services != 40000 {
		t.Fatalf("groups: %+v", groups)
	}
	g := groups[0]
	seen := map[Step]int{}
	for _, s := range slices.Concat(g.Data, g.Control) {
		seen[s]++
	}
	for s, n := range seen {
		if n != 1 {
			t.Errorf("%v in round %d is planned %d times", s.Key, s.Round, n)
		}
	}
	// 2 cases x 2 columns and one bare figure, in 2 rounds.
	if len(g.Data) != 10 {
		t.Errorf("%d data steps, want 10", len(g.Data))
	}
	if len(g.Control) != 2*2*2 {
		t.Errorf("%d control steps, want 8", len(g.Control))
	}
	if g.Data[0].Column == g.Data[5].Column {
		t.Errorf("%s is first in both rounds", g.Data[0].Column)
	}
	if got := groups[1].Columns(); !slices.Equal(got, []string{Bare, EBPF}) {
		t.Errorf("columns with 40,000 Services: %v", got)
	}
	if got := usedBy(g); len(got) != 2 {
		t.Errorf("used Services: %v", got)
	}
}

// What is done is not planned again, and nothing else is left out.
func TestPlanResumes(t *testing.T) {
	o := testOptions()
	done := map[Step]bool{}
	var all int
	for _, g := range Plan(o, nil) {
		for i, s := range slices.Concat(g.Data, g.Control) {
			all++
			if i%2 == 0 {
				done[s] = true
			}
		}
	}
	left := 0
	for _, g := range Plan(o, done) {
		for _, s := range slices.Concat(g.Data, g.Control) {
			left++
			if done[s] {
				t.Errorf("%v is done", s)
			}
			done[s] = true
		}
	}
	if left == 0 || len(done) != all {
		t.Errorf("%d left, %d in all, want %d", left, len(done), all)
	}
	if groups := Plan(o, done); len(groups) != 0 {
		t.Errorf("all is done, but %+v", groups)
	}
}

func TestPresetsAreValid(t *testing.T) {
	for _, p := range []Preset{Quick, Default, Full, Check} {
		o := PresetOptions(p)
		if err := o.Validate(); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		var sum time.Duration
		for _, g := range Plan(o, nil) {
			for _, s := range slices.Concat(g.Data, g.Control) {
				sum += o.Estimate(s)
			}
		}
		t.Logf("%s: %s without labs", p, sum.Round(time.Second))
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		change func(*Options)
		want   string
	}{
		{func(o *Options) { o.Columns = []string{"ipvs"} }, `unknown column "ipvs"`},
		{func(o *Options) { o.Blocks[0].Works = []string{"udp@fast"} }, "udp@RATE"},
		{func(o *Options) { o.Blocks[0].Families = []int{5} }, "family 5"},
		{func(o *Options) { o.Blocks[0].Endpoints = []int{2} }, "2 endpoints"},
		{func(o *Options) { o.Blocks[0].Services = []int{0} }, "0 Services"},
		{func(o *Options) { o.ControlServices = []int{1 << 30} }, "Services: use 1 to"},
		{func(o *Options) { o.Rounds = 0 }, "0 rounds"},
		{func(o *Options) { o.Slot = time.Millisecond }, "1ms for one figure"},
	} {
		o := testOptions()
		tc.change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
}

func TestFileResumes(t *testing.T) {
	dir := t.TempDir()
	run := Run{Started: time.Unix(1e9, 0).UTC(), Version: "v", Options: testOptions()}
	f, err := CreateFile(dir, run)
	if err != nil {
		t.Fatal(err)
	}
	samples := []Sample{of(Bare, 0, 1), of(EBPF, 0, 2)}
	for _, s := range samples {
		if err := f.Append(s); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	// A line that was cut short when the machine went down.
	whole, err := os.ReadFile(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.Path(), append(whole, `{"sample":{"colu`...), 0o644); err != nil {
		t.Fatal(err)
	}
	latest, err := LatestFile(dir)
	if err != nil || latest != f.Path() {
		t.Fatalf("latest is %s, %v", latest, err)
	}
	f, gotRun, got, err := ResumeFile(latest)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(run, gotRun) + cmp.Diff(samples, got); diff != "" {
		t.Errorf("resumed (-want +got):\n%s", diff)
	}
	failed := of(EBPF, 1, 0)
	failed.Error = "no"
	if err := f.Append(failed); err != nil {
		t.Fatal(err)
	}
	f.Close()
	_, got, err = ReadFile(latest)
	if err != nil || len(got) != 3 {
		t.Fatalf("%d samples, %v", len(got), err)
	}
	done := Done(got)
	if !done[Step{samples[1].Key, 0}] || done[Step{failed.Key, 1}] {
		t.Errorf("done: %v; a figure that failed is to be tried again", done)
	}
}

func TestReadFileNamesWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "first line is not whole",
		"{}\n":                      "describes no run",
		"{\"run\":{}}\nnonsense\n":  "line 2",
		"{\"run\":{}}\n{\"sample\"": "", // cut short
	} {
		path := filepath.Join(t.TempDir(), "x.jsonl")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, _, err := ReadFile(path)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// Addresses of different things must not meet.
func TestAddressPlan(t *testing.T) {
	for _, family := range []int{4, 6} {
		last := plus(fillers[v6(family)], maxServices)
		if last.Compare(lastServices[v6(family)]) >= 0 || last.Compare(fillers[v6(family)]) <= 0 {
			t.Errorf("v%d: fillers end at %s, the last Services begin at %s", family, last, lastServices[v6(family)])
		}
	}
	if got := plus(firstServices[0], 300).String(); got != "10.96.1.144" {
		t.Errorf("plus: %s", got)
	}
	ports := map[int32]used{}
	for _, n := range endpointCounts {
		for _, p := range []string{First, Last} {
			u := used{n, p}
			if other, ok := ports[u.nodePort()]; ok {
				t.Errorf("%v and %v share a node port", u, other)
			}
			ports[u.nodePort()] = u
		}
	}
}

func TestObjectsAreAsManyAsAsked(t *testing.T) {
	for _, g := range Plan(testOptions(), nil) {
		g.Services = 100
		services := len(objects(g, testOptions()))/2 + (1+churned)*min(1, len(g.Control))
		if services != 100 {
			t.Errorf("%d Services, want 100", services)
		}
	}
}

func TestTargets(t *testing.T) {
	for _, tc := range []struct {
		k        Key
		from, to string
	}{
		{Key{Bare, 4, 1, PathCluster, 0, "", WorkConnect}, "pod-a1", "10.244.64.1:7100"},
		{Key{Bare, 6, 1, PathExternal, 0, "", WorkTCP1}, "client", "[fd00:10:244:50::1]:5202"},
		{Key{EBPF, 4, 1, PathCluster, 1, First, WorkConnect}, "pod-a1", "10.96.0.100:7100"},
		{Key{EBPF, 4, 1, PathNodePortLocal, 1, First, WorkConnect}, "client", "192.168.77.12:31000"},
		{Key{EBPF, 4, 1, PathNodePortRemote, 1, First, WorkTCP8}, "client", "192.168.77.11:31001"},
		{Key{EBPF, 6, 1, PathExternal, 1000, Last, WorkDatagram}, "client", "[fd00:198::107]:7100"},
	} {
		if from, to := target(tc.k); from != tc.from || to.String() != tc.to {
			t.Errorf("%v: %s to %s, want %s to %s", tc.k, from, to, tc.from, tc.to)
		}
	}
}

func TestParseUsage(t *testing.T) {
	got, err := parseUsage("7 (a) b) S 1 7 7 0 -1 0 1 2 3 4 100 50 20 30 20 0 9 0 5 1 2", "Name:\tx\nVmHWM:\t 200 kB\nVmRSS:\t100 kB\n")
	want := Usage{CPU: 2, RSS: 100 << 10, PeakRSS: 200 << 10}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestParseIPerf2(t *testing.T) {
	got, err := parseIPerf2("20260101000000,10.0.0.1,4000,10.0.0.2,5001,1,0.0-1.0,125000000,1000000000\n")
	if err != nil || got != 1e9 {
		t.Errorf("got %g, %v", got, err)
	}
	if _, err := parseIPerf2("connect failed"); err == nil {
		t.Error("no error")
	}
}

func TestTextNamesWhatFailed(t *testing.T) {
	s := of(EBPF, 0, 90)
	s.Failures, s.FirstError = 3, "refused"
	h := load.NewHistogram()
	_ = h.RecordValue(42000)
	var err error
	if s.Latency, err = load.EncodeHistogram(h); err != nil {
		t.Fatal(err)
	}
	missing := of(IPTablesNFT, 0, 0)
	missing.Error = "did not start"
	var out strings.Builder
	if err := WriteText(&out, Run{}, []Sample{of(Bare, 0, 100), s, missing}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.900", "100/s", "42 / 42 / 42", "3 operations", "refused", "did not start"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the report:\n%s", want, &out)
		}
	}
}
