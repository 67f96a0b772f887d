package bench

import (
	"math"
	"slices"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/nodeproxy/nodeproxy/bench/load"
)

// Summary is the middle of some values and how far they spread.
type Summary struct {
	N                int
	Median, Min, Max float64
	// Low and High are the quartiles.
	Low, High float64
}

// noisySpread is how far apart quartiles may be, as a part of the median, before a figure
// counts as noisy.
const noisySpread = 0.2

// Noisy reports whether the values are so far apart that the median says little: on a
// machine that did something else meanwhile.
func (s Summary) Noisy() bool { return s.Median > 0 && (s.High-s.Low)/s.Median > noisySpread }

// Summarize returns the summary of values, the zero one of none.
func Summarize(values []float64) Summary {
	if len(values) == 0 {
		return Summary{}
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return Summary{
		N: len(sorted), Median: quantile(sorted, 0.5), Min: sorted[0], Max: sorted[len(sorted)-1],
		Low: quantile(sorted, 0.25), High: quantile(sorted, 0.75),
	}
}

// quantile interpolates between the two values that are next to q, as R's
// type 7 does.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	below := int(math.Floor(at))
	if below+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}

// Table holds the samples of a run by key.
type Table struct {
	samples map[Key][]Sample
	keys    []Key // in the order in which they came
}

// NewTable returns a table of samples; those without a figure are left out.
func NewTable(samples []Sample) *Table {
	t := &Table{samples: map[Key][]Sample{}}
	for _, s := range samples {
		if s.Error != "" {
			continue
		}
		if t.samples[s.Key] == nil {
			t.keys = append(t.keys, s.Key)
		}
		t.samples[s.Key] = append(t.samples[s.Key], s)
	}
	return t
}

// Keys returns all keys that satisfy want, in the order in which they came.
func (t *Table) Keys(want func(Key) bool) []Key {
	return slices.DeleteFunc(slices.Clone(t.keys), func(k Key) bool { return !want(k) })
}

// Samples returns those of a key.
func (t *Table) Samples(k Key) []Sample { return t.samples[k] }

// Value summarizes a key's values.
func (t *Table) Value(k Key) Summary {
	var values []float64
	for _, s := range t.samples[k] {
		values = append(values, s.Value)
	}
	return Summarize(values)
}

// Ratio summarizes how a key's values stand to those of another key that were
// measured in the same rounds, next to them in time: what slows the machine
// for some seconds slows both.
func (t *Table) Ratio(k, base Key) Summary {
	rounds := map[int]float64{}
	for _, s := range t.samples[base] {
		rounds[s.Round] = s.Value
	}
	var ratios []float64
	for _, s := range t.samples[k] {
		if b := rounds[s.Round]; b > 0 {
			ratios = append(ratios, s.Value/b)
		}
	}
	return Summarize(ratios)
}

// OfBare is the ratio to the bare figure of the same case.
func (t *Table) OfBare(k Key) Summary { return t.Ratio(k, k.BareKey()) }

// CPUPer summarizes what the machine's CPUs spent for each operation or byte,
// in seconds, and how much of it in soft interrupts.
func (t *Table) CPUPer(k Key) (busy, softirq Summary) {
	var all, soft []float64
	for _, s := range t.samples[k] {
		if s.Amount > 0 && s.CPU.Busy() > 0 {
			all = append(all, s.CPU.Busy().Seconds()/s.Amount)
			soft = append(soft, s.CPU.SoftIRQ.Seconds()/s.Amount)
		}
	}
	return Summarize(all), Summarize(soft)
}

// Latency returns the histogram of all of a key's samples together, nil where
// there is none.
func (t *Table) Latency(k Key) *hdrhistogram.Histogram { return mergedLatency(t.samples[k]) }

func mergedLatency(samples []Sample) *hdrhistogram.Histogram {
	var all *hdrhistogram.Histogram
	for _, s := range samples {
		if s.Latency == "" {
			continue
		}
		h, err := load.DecodeHistogram(s.Latency)
		if err != nil {
			continue // of another version: the other figures still count
		}
		if all == nil {
			all = load.NewHistogram()
		}
		all.Merge(h)
	}
	return all
}
