package bench

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// A chart is drawn whatever its values are, also where an axis has a single one, and
// has a label on each axis.
func TestNoChartPanics(t *testing.T) {
	line := func(points ...point) []series { return []series{{column: EBPF, points: points}} }
	for name, lines := range map[string][]series{
		"one value":       line(point{1, 0.27, 0.27, 0.27}),
		"value of one":    line(point{1, 1, 1, 1}),
		"one size":        line(point{10, 5, 4, 6}, point{10, 7, 6, 8}),
		"many sizes":      line(point{1, 0.1, 0.1, 0.1}, point{10000, 300, 200, 400}),
		"zero":            line(point{0, 0, 0, 0}),
		"zero and more":   line(point{0, 0, 0, 0}, point{10, 10, 10, 10}),
		"negative":        line(point{1, -1, -2, -1}),
		"whisker at zero": line(point{1, 1, 0, 2}),
		"no number":       line(point{1, math.NaN(), math.NaN(), math.NaN()}),
		"infinite":        line(point{1, math.Inf(1), 1, math.Inf(1)}),
		"two lines":       append(line(point{1, 1, 1, 1}), series{column: Bare, points: []point{{1, 2, 2, 2}}}),
	} {
		for _, log := range [][2]bool{{false, false}, {true, false}, {false, true}, {true, true}} {
			f := figure{title: name, x: "Services", y: "s", series: lines, logX: log[0], logY: log[1]}
			svg, err := f.drawn()
			bad := name == "no number" || name == "infinite"
			if err != nil && (!bad || !strings.Contains(err.Error(), name)) {
				t.Errorf("%s, logarithmic %v: %v", name, log, err)
			}
			if err == nil && strings.Count(svg, "<text") < 4 { // two axes with a name and a tick each
				t.Errorf("%s, logarithmic %v: an axis has no tick with a label:\n%s", name, log, svg)
			}
		}
	}
}

// A run of a single size, as the smallest that can be asked for, has a page.
func TestReportOfOneSizeHasAPage(t *testing.T) {
	var samples []Sample
	for round := range 3 {
		for _, work := range []string{WorkStart, WorkChange, WorkRestart} {
			for _, column := range []string{IPTablesNFT, EBPF} {
				s := of(column, round, 0.27)
				s.Key = Key{Column: column, Services: 1, Family: 4, Work: work}
				s.Agent.PeakRSS, s.Agent.CPU, s.Gap = 1<<25, 0.01, 0.001
				samples = append(samples, s)
			}
		}
	}
	var page strings.Builder
	if err := WriteHTML(&page, Run{}, samples); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(page.String(), "<svg"); n != 5 || strings.Contains(page.String(), "left out") {
		t.Errorf("%d charts, want the 5 of the control plane and none left out", n)
	}
}

// Ticks say what they are.
func TestTicksAreNotRounded(t *testing.T) {
	f := figure{title: "t", x: "x", y: "of bare", one: true, series: []series{{column: EBPF, points: []point{{1, 0.8, 0.75, 0.9}, {2, 1, 0.9, 1.05}}}}}
	svg, err := f.drawn()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, part := range strings.Split(svg, "<text")[1:] {
		_, text, _ := strings.Cut(part, ">")
		text, _, _ = strings.Cut(text, "<")
		seen[strings.TrimSpace(text)]++
	}
	if seen["1"] > 1 && seen["1.05"] == 0 {
		t.Errorf("two ticks are labelled 1: %v", fmt.Sprint(seen))
	}
}
