package bench

import (
	_ "embed"
	"fmt"
	"slices"

	"sigs.k8s.io/yaml"
)

//go:embed floors.yaml
var floorsText []byte

// Floors say what is asked of a run of the preset [Check].
type Floors struct {
	// Margin is how far a ratio may be below its floor.
	Margin float64 `json:"margin"`
	Floors []Floor `json:"floors"`
}

// Floor is the least that is asked of a figure.
type Floor struct {
	Column string `json:"column"`
	Work   string `json:"work"`
	Path   string `json:"path,omitempty"`
	// Ratio is to bare.
	Ratio float64 `json:"ratio,omitempty"`
	// Seconds are the most that the figure may be.
	Seconds float64 `json:"seconds,omitempty"`
}

// CommittedFloors returns those of the repository.
func CommittedFloors() (Floors, error) {
	var f Floors
	if err := yaml.UnmarshalStrict(floorsText, &f); err != nil {
		return f, fmt.Errorf("read floors.yaml: %w", err)
	}
	return f, nil
}

// Verdict is what a figure is beside its floor.
type Verdict struct {
	Key   Key
	Floor Floor
	Got   Summary
	// Missing tells that the run has no such figure.
	Missing bool
	OK      bool
}

// String is a line of the report.
func (v Verdict) String() string {
	text := "ok  "
	if !v.OK {
		text = "FAIL"
	}
	text += fmt.Sprintf(" %-16s %-8s %-16s", v.Floor.Column, v.Floor.Work, v.Floor.Path)
	switch {
	case v.Missing:
		return text + " was not measured"
	case v.Floor.Seconds > 0:
		return text + fmt.Sprintf(" %.3f s, at most %.3f s", v.Got.Median, v.Floor.Seconds)
	}
	return text + fmt.Sprintf(" %.3f of bare (quartiles %.2f–%.2f), floor %.2f", v.Got.Median, v.Got.Low, v.Got.High, v.Floor.Ratio)
}

// Judge compares samples with the floors. The columns that were not asked for
// are left out.
func (f Floors) Judge(columns []string, samples []Sample) []Verdict {
	t := NewTable(samples)
	var out []Verdict
	for _, floor := range f.Floors {
		if !slices.Contains(columns, floor.Column) {
			continue
		}
		keys := t.Keys(func(k Key) bool {
			return k.Column == floor.Column && k.Work == floor.Work && k.Path == floor.Path
		})
		if len(keys) == 0 {
			out = append(out, Verdict{Floor: floor, Missing: true})
		}
		for _, k := range keys {
			v := Verdict{Key: k, Floor: floor}
			if floor.Seconds > 0 {
				v.Got = t.Value(k)
				v.OK = v.Got.Median <= floor.Seconds
			} else {
				v.Got = t.OfBare(k)
				v.OK = v.Got.Median >= floor.Ratio-f.Margin
			}
			v.Missing = v.Got.N == 0
			v.OK = v.OK && !v.Missing
			out = append(out, v)
		}
	}
	return out
}

// Retry returns the options of a second attempt, which measures as many rounds
// more, and the steps that it is not to measure: all but those of figures that
// failed and of the bare ones beside them.
func Retry(o Options, verdicts []Verdict) (Options, map[Step]bool) {
	again := map[Key]bool{}
	for _, v := range verdicts {
		if !v.OK {
			again[v.Key], again[v.Key.BareKey()] = true, true
		}
	}
	first := o
	o.Rounds, o.ControlRounds = 2*o.Rounds, 2*o.ControlRounds
	done := map[Step]bool{}
	for _, g := range Plan(o, nil) {
		for _, s := range slices.Concat(g.Data, g.Control) {
			rounds := first.Rounds
			if isControl(s.Work) {
				rounds = first.ControlRounds
			}
			done[s] = s.Round < rounds || !again[s.Key]
		}
	}
	return o, done
}
