package bench

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteText writes a run's figures as tables for a terminal.
func WriteText(w io.Writer, run Run, samples []Sample) error {
	t := NewTable(samples)
	fmt.Fprintf(w, "%s, %d CPUs (%s), Linux %s, %s, begun %s\n", run.Machine.System, run.Machine.CPUs, run.Machine.CPU,
		run.Machine.Kernel, run.Version, run.Started.UTC().Format(time.DateTime))
	for _, table := range textTables(t) {
		fmt.Fprintf(w, "\n%s\n", table.title)
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		for _, row := range append([][]string{table.header}, table.rows...) {
			fmt.Fprintln(tw, "\t"+strings.Join(row, "\t")+"\t")
		}
		if err := tw.Flush(); err != nil {
			return fmt.Errorf("write tables: %w", err)
		}
	}
	for _, line := range append(notes(t), Failures(samples)...) {
		fmt.Fprintln(w, line)
	}
	return nil
}

// notes explain what is in the tables: the works that were done, and marks.
func notes(t *Table) (out []string) {
	for _, row := range legendOf(t.Keys(func(Key) bool { return true })) {
		out = append(out, row[0]+": "+row[1])
	}
	for _, table := range textTables(t) {
		for _, row := range table.rows {
			if slices.ContainsFunc(row, func(cell string) bool { return strings.HasSuffix(cell, noisyMark) }) {
				return append(out, noisyWords)
			}
		}
	}
	return out
}

// table is one of the report's.
type table struct {
	title  string
	header []string
	rows   [][]string
}

// textTables returns the tables of a report that have rows.
func textTables(t *Table) []table {
	out := []table{ratioTable(t), latencyTable(t), costTable(t), lossTable(t), controlTable(t)}
	return slices.DeleteFunc(out, func(t table) bool { return len(t.rows) == 0 })
}

func isControl(work string) bool { return slices.Contains(controlWorks, work) }

// columnsOf returns the columns of some keys, in their usual order.
func columnsOf(keys []Key) []string {
	var out []string
	for _, c := range columnNames {
		if slices.ContainsFunc(keys, func(k Key) bool { return k.Column == c }) {
			out = append(out, c)
		}
	}
	return out
}

// casesOf returns the cases of keys that are not bare, sorted.
func casesOf(keys []Key) []Key {
	var out []Key
	for _, k := range keys {
		if c := k.Case(); k.Column != Bare && !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out, func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), strings.Compare(a.Work, b.Work), slices.Index(pathNames, a.Path)-slices.Index(pathNames, b.Path),
			cmp.Compare(a.Endpoints, b.Endpoints), strings.Compare(a.Position, b.Position), cmp.Compare(a.Services, b.Services))
	})
	return out
}

func caseCells(c Key) []string {
	detail := ""
	if c.Endpoints > 1 {
		detail = fmt.Sprintf("%d endpoints ", c.Endpoints)
	}
	if c.Position == First {
		detail += "first"
	}
	path := c.Path
	if c.Family == 6 {
		path += " v6"
	}
	return []string{c.Work, path, fmt.Sprint(c.Services), strings.TrimSpace(detail)}
}

var caseHeader = []string{"work", "path", "Services", "variant"}

func isRate(k Key) bool { return !isControl(k.Work) && !strings.HasPrefix(k.Work, WorkUDP) }

// ratioTable is the headline: each column's rate beside the bare one.
func ratioTable(t *Table) table {
	keys := t.Keys(isRate)
	columns := slices.DeleteFunc(columnsOf(keys), func(c string) bool { return c == Bare })
	out := table{title: "Rates, compared with bare: median (quartiles); higher is better", header: append(slices.Clone(caseHeader), append([]string{Bare}, columns...)...)}
	for _, c := range casesOf(keys) {
		row := append(caseCells(c), Rate(t.Value(c.BareKey()).Median, c.Work))
		for _, column := range columns {
			k := c
			k.Column = column
			row = append(row, ratioCell(t.OfBare(k), t.Value(k), c.Work))
		}
		out.rows = append(out.rows, row)
	}
	return out
}

func ratioCell(ratio, value Summary, work string) string {
	switch {
	case ratio.N > 0:
		return fmt.Sprintf("%.3f (%.2f–%.2f)", ratio.Median, ratio.Low, ratio.High) + mark(ratio)
	case value.N > 0:
		return Rate(value.Median, work) // there is no bare figure
	}
	return "-"
}

// noisyMark marks a noisy figure, and noisyWords say what it means.
const (
	noisyMark  = " ~"
	noisyWords = "~ noisy: the quartiles are more than 20 % of the median apart; measure again on a machine that does nothing else, or with more rounds"
)

func mark(s Summary) string {
	if s.Noisy() {
		return noisyMark
	}
	return ""
}

// Rate returns a rate with its unit.
func Rate(v float64, work string) string {
	switch {
	case v == 0:
		return "-"
	case isIPerf(work):
		return fmt.Sprintf("%.2f Gbit/s", v/1e9)
	}
	return fmt.Sprintf("%.0f/s", v)
}

// caseTable has a row for each case of keys, and a cell for each column, bare
// too.
func caseTable(title string, keys []Key, cell func(Key) string) table {
	columns := columnsOf(keys)
	out := table{title: title, header: append(slices.Clone(caseHeader), columns...)}
	for _, c := range casesOf(keys) {
		row := caseCells(c)
		for _, column := range columns {
			k := c
			k.Column = column
			if column == Bare {
				k = c.BareKey()
			}
			row = append(row, cell(k))
		}
		out.rows = append(out.rows, row)
	}
	return out
}

// latencyTable has the quantiles of all rounds together.
func latencyTable(t *Table) table {
	keys := t.Keys(func(k Key) bool { return !isControl(k.Work) && t.Latency(k) != nil })
	return caseTable("Latency, p50 / p99 / p99.9 in µs (connect: SYN to its answer); lower is better", keys, t.quantiles)
}

func (t *Table) quantiles(k Key) string {
	h := t.Latency(k)
	if h == nil {
		return "-"
	}
	us := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1e3 }
	return fmt.Sprintf("%.0f / %.0f / %.0f", us(50), us(99), us(99.9))
}

// costTable has the CPU time of each operation or gigabyte, of all CPUs.
func costTable(t *Table) table {
	keys := t.Keys(func(k Key) bool { busy, _ := t.CPUPer(k); return !isControl(k.Work) && busy.N > 0 })
	return caseTable("CPU time of both ends and all between: µs for each operation, ms for each GB (of it in soft interrupts); lower is better", keys,
		func(k Key) string {
			busy, soft := t.CPUPer(k)
			if busy.N == 0 {
				return "-"
			}
			unit := 1e6 // µs an operation
			if isIPerf(k.Work) {
				unit = 1e9 * 1e3 // ms a gigabyte
			}
			return fmt.Sprintf("%.0f (%.0f)", busy.Median*unit, soft.Median*unit)
		})
}

func lossTable(t *Table) table {
	keys := t.Keys(func(k Key) bool { return strings.HasPrefix(k.Work, WorkUDP) })
	return caseTable("UDP datagrams lost at a fixed rate, %: median (most); lower is better", keys, func(k Key) string {
		v := t.Value(k)
		if v.N == 0 {
			return "-"
		}
		return fmt.Sprintf("%.2f (%.2f)", v.Median, v.Max)
	})
}

// controlTable has a row for each column and number of Services.
func controlTable(t *Table) table {
	out := table{title: "Control plane: start to traffic (full sync), a change to the first packet that follows, 100 changes/s under load, kill and start under load; lower is better",
		header: []string{"Services", "column", "start", "start CPU", "start memory", "change p50", "change p99", "CPU a change", "churn failed", "churn p99", "churn CPU", "restart failed", "longest gap"}}
	keys := t.Keys(func(k Key) bool { return isControl(k.Work) })
	counts := map[int]bool{}
	for _, k := range keys {
		counts[k.Services] = true
	}
	var sorted []int
	for n := range counts {
		sorted = append(sorted, n)
	}
	slices.Sort(sorted)
	for _, n := range sorted {
		for _, column := range columnsOf(keys) {
			row := t.controlRow(column, n)
			if slices.ContainsFunc(row, func(c string) bool { return c != "-" }) {
				out.rows = append(out.rows, append([]string{fmt.Sprint(n), column}, row...))
			}
		}
	}
	return out
}

func (t *Table) controlRow(column string, services int) []string {
	row := slices.Repeat([]string{"-"}, 11)
	of := func(work string) []Sample {
		return t.samples[Key{Column: column, Family: 4, Services: services, Work: work}]
	}
	seconds := func(s float64) string { return time.Duration(s * 1e9).Round(100 * time.Microsecond).String() }
	median := func(samples []Sample, f func(Sample) float64) float64 {
		var values []float64
		for _, s := range samples {
			values = append(values, f(s))
		}
		return Summarize(values).Median
	}
	if s := of(WorkStart); len(s) > 0 {
		row[0] = seconds(median(s, func(s Sample) float64 { return s.Value }))
		if synced := median(s, func(s Sample) float64 { return s.Agent.Synced }); synced > 0 {
			row[0] += " (" + seconds(synced) + ")"
		}
		row[1] = seconds(median(s, func(s Sample) float64 { return s.Agent.CPU }))
		row[2] = fmt.Sprintf("%.0f MB", median(s, func(s Sample) float64 { return float64(s.Agent.PeakRSS) / 1e6 }))
	}
	if s := of(WorkChange); len(s) > 0 {
		if h := mergedLatency(s); h != nil {
			row[3], row[4] = seconds(float64(h.ValueAtQuantile(50))/1e9), seconds(float64(h.ValueAtQuantile(99))/1e9)
		}
		row[5] = seconds(median(s, func(s Sample) float64 { return s.Agent.CPU }))
	}
	if s := of(WorkChurn); len(s) > 0 {
		row[6] = fmt.Sprint(sum(s, func(s Sample) int { return s.Failures }))
		row[7] = seconds(median(s, func(s Sample) float64 { return s.Value }))
		row[8] = seconds(median(s, func(s Sample) float64 { return s.Agent.CPU }))
	}
	if s := of(WorkRestart); len(s) > 0 {
		row[9] = fmt.Sprint(sum(s, func(s Sample) int { return s.Failures }))
		row[10] = seconds(median(s, func(s Sample) float64 { return s.Gap }))
	}
	return row
}

func sum(samples []Sample, f func(Sample) int) (n int) {
	for _, s := range samples {
		n += f(s)
	}
	return n
}

// Failures returns lines about operations that failed and figures that are
// missing, once each.
func Failures(samples []Sample) []string {
	var out []string
	missing := map[string]int{}
	failed := map[Key]Sample{}
	for _, s := range samples {
		if s.Error != "" {
			missing[fmt.Sprintf("%s with %d Services (v%d): %s", s.Column, s.Services, s.Family, strings.ReplaceAll(s.Error, "\n", " / "))]++
			continue
		}
		if s.Failures > 0 {
			sum := failed[s.Key]
			s.Failures += sum.Failures
			failed[s.Key] = s
		}
	}
	for text, n := range missing {
		out = append(out, fmt.Sprintf("not measured: %d figures of %s", n, text))
	}
	for k, s := range failed {
		out = append(out, fmt.Sprintf("failed: %d operations of %s; the first: %s", s.Failures, k, s.FirstError))
	}
	slices.Sort(out)
	return out
}

// Text describes a sample in a line.
func (s Sample) Text() string {
	text := s.Key.String() + ": "
	switch {
	case s.Error != "":
		return text + strings.ReplaceAll(s.Error, "\n", " / ")
	case isControl(s.Work):
		text += time.Duration(s.Value * 1e9).Round(10 * time.Microsecond).String()
	case s.Unit == "%":
		text += fmt.Sprintf("%.2f %% lost", s.Value)
	default:
		text += Rate(s.Value, s.Work)
	}
	if s.Rank > 0 {
		text += fmt.Sprintf(", at %.0f %% of the list", 100*s.Rank)
	}
	if s.Failures > 0 {
		text += fmt.Sprintf(", %d failed (%s)", s.Failures, s.FirstError)
	}
	return text
}
