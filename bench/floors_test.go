package bench

import (
	"slices"
	"testing"
)

// Each floor is about a figure that the preset measures, and each figure of a
// column has a floor.
func TestFloorsMatchThePreset(t *testing.T) {
	floors, err := CommittedFloors()
	if err != nil {
		t.Fatal(err)
	}
	o := PresetOptions(Check)
	var samples []Sample
	for _, g := range Plan(o, nil) {
		for _, s := range slices.Concat(g.Data, g.Control) {
			samples = append(samples, Sample{Key: s.Key, Round: s.Round, Value: 1})
		}
	}
	for _, v := range floors.Judge(o.Columns, samples) {
		if v.Missing {
			t.Errorf("%v", v)
		}
		if (v.Floor.Ratio > 0) == (v.Floor.Seconds > 0) {
			t.Errorf("%+v: want a ratio or seconds", v.Floor)
		}
	}
	for _, s := range samples {
		if s.Column == Bare || isControl(s.Work) {
			continue
		}
		if !slices.ContainsFunc(floors.Floors, func(f Floor) bool {
			return f.Column == s.Column && f.Work == s.Work && f.Path == s.Path
		}) {
			t.Errorf("%v has no floor", s.Key)
		}
	}
}

func TestJudge(t *testing.T) {
	f := Floors{Margin: 0.1, Floors: []Floor{{Column: EBPF, Work: WorkConnect, Path: PathCluster, Ratio: 0.9}, {Column: EBPF, Work: WorkChange, Seconds: 0.1}}}
	change := Sample{Key: Key{Column: EBPF, Family: 4, Services: 10, Work: WorkChange}, Value: 0.2}
	for _, tc := range []struct {
		values []float64
		want   bool
	}{
		{[]float64{95, 95, 95}, true}, {[]float64{81, 81, 81}, true}, // within the margin
		{[]float64{79, 79, 79}, false}, {[]float64{95, 10, 95}, true}, // a bad round
		{nil, false},
	} {
		samples := []Sample{change}
		for round, v := range tc.values {
			samples = append(samples, of(Bare, round, 100), of(EBPF, round, v))
		}
		got := f.Judge([]string{EBPF}, samples)
		if len(got) != 2 || got[0].OK != tc.want || got[0].Missing != (tc.values == nil) || got[1].OK {
			t.Errorf("%v: %v", tc.values, got)
		}
	}
	if got := f.Judge([]string{IPTablesNFT}, nil); len(got) != 0 {
		t.Errorf("a column that was not measured: %v", got)
	}
}

// A second attempt measures what failed, and bare beside it, in new rounds.
func TestRetry(t *testing.T) {
	o := testOptions()
	failed := Plan(o, nil)[0].Data[1].Key
	if failed.Column == Bare {
		t.Fatal("the second step is a bare one")
	}
	again, done := Retry(o, []Verdict{{Key: failed}, {Key: Key{Column: EBPF}, OK: true}})
	var keys []Key
	for _, g := range Plan(again, done) {
		for _, s := range slices.Concat(g.Data, g.Control) {
			keys = append(keys, s.Key)
			if s.Round < o.Rounds {
				t.Errorf("%v of round %d again", s.Key, s.Round)
			}
		}
	}
	if len(keys) != 2*o.Rounds {
		t.Errorf("%d steps, want %d: %v", len(keys), 2*o.Rounds, keys)
	}
	for _, k := range keys {
		if k != failed && k != failed.BareKey() {
			t.Errorf("%v has not failed", k)
		}
	}
}
