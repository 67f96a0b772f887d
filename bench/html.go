package bench

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

const pageHead = `<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nodeproxy bench</title>
<style>
body { font: 16px/1.5 sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; } h3 { font-size: 1em; margin: 0 0 .2em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
td, th { padding: .25em .7em; border-bottom: 1px solid #e4e4e4; text-align: right; white-space: nowrap; }
th { background: #f5f5f5; } td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 1.5em; }
figure { margin: 0; min-width: 0; } figure svg { width: 100%; height: auto; display: block; }
.wide { grid-column: 1 / -1; }
figcaption, .note { color: #555; font-size: 14px; overflow-wrap: anywhere; }
.legend { list-style: none; margin: 0; padding: 0; font-size: 14px; } .legend li { display: inline-block; margin-right: 1.2em; white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1em; font-size: 14px; } dt { font-weight: bold; } dd { margin: 0; }
.failures { color: #a40000; overflow-wrap: anywhere; }
@media (max-width: 600px) { body { margin: 1em auto; padding: 0 .6em; } dl { display: block; } dd { margin-bottom: .4em; } }
@media print {
  @page { margin: 1.5cm; }
  body { max-width: none; margin: 0; padding: 0; font-size: 11px; }
  .charts { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; } figure svg { min-width: 0 !important; max-width: none !important; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  table { font-size: 8px; width: 100%; } td, th { padding: .1em .2em; white-space: normal; } th, .legend li span { print-color-adjust: exact; }
}
</style>
<h1>What Services cost</h1>
`

// WriteHTML writes a run's figures as one page that needs nothing else, no
// network either.
//
// It is written by hand: a program that uses html/template keeps every method
// of every type it links, which makes the agent half as large again.
func WriteHTML(out io.Writer, run Run, samples []Sample) error {
	t := NewTable(samples)
	pictures := charts(t)
	w := bufio.NewWriter(out)
	p := func(format string, text ...any) {
		for i, v := range text {
			if s, ok := v.(string); ok {
				text[i] = html.EscapeString(s)
			}
		}
		fmt.Fprintf(w, format, text...)
	}
	w.WriteString(pageHead)
	m := run.Machine
	p("<p>%s, %d CPUs (%s), %d MB, Linux %s; %s; begun %s UTC.", m.System, m.CPUs, m.CPU, m.MemoryMB, m.Kernel,
		run.Version, run.Started.UTC().Format(time.DateTime))
	var tools []string
	for _, name := range slices.Sorted(maps.Keys(m.Tools)) {
		tools = append(tools, name+": "+m.Tools[name])
	}
	p("\n<span class=\"note\">%s.</span></p>\n", strings.Join(tools, "; "))
	p(`<p class="note">Labs of network namespaces on one machine: client, server and everything between share its CPUs. Bare is a
lab without an agent, where clients dial a Pod's own address on a way with as many hops. Columns take turns case by case, in
%d rounds; a ratio is of two figures of the same round. Each Service that is not used has %d endpoints.</p>
`, run.Options.Rounds, run.Options.FillerEndpoints)
	if lines := Failures(samples); len(lines) > 0 {
		p("<h2>What failed</h2>\n<ul class=\"failures\">")
		for _, line := range lines {
			p("<li>%s</li>\n", line)
		}
		p("</ul>\n")
	}
	p("<h2>What was measured</h2>\n<dl>\n")
	for _, row := range legendOf(t.Keys(func(Key) bool { return true })) {
		p("<dt>%s</dt><dd>%s</dd>\n", row[0], row[1])
	}
	p("</dl>\n<h2>Charts</h2>\n<div class=\"charts\">\n")
	for _, c := range pictures {
		writeChart(w, p, c)
	}
	p("</div>\n<p class=\"note\">%s.</p>\n", noisyWords)
	for _, t := range textTables(t) {
		p("<h2>%s</h2>\n<div class=\"scroll\"><table>", t.title)
		writeRow(p, "th", t.header)
		for _, row := range t.rows {
			writeRow(p, "td", row)
		}
		p("</table></div>\n")
	}
	p("</html>\n")
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

// writeChart writes a chart with its legend. One that is wider than a screen may be keeps
// the size of its text, and scrolls.
func writeChart(w *bufio.Writer, p func(string, ...any), c chart) {
	style, class := "", ""
	if c.width > chartWidth {
		style, class = fmt.Sprintf(` style="min-width: %dpx; max-width: %dpx"`, c.width, c.width*4/3), "wide"
	}
	p("<figure class=\"%s\"><h3>%s</h3>\n<ul class=\"legend\">", class, c.title)
	for _, column := range c.columns {
		rgb := colours[column]
		p("<li><span style=\"color: #%02x%02x%02x\">%s</span> %s</li>", rgb.R, rgb.G, rgb.B, shapes[column].sign, column)
	}
	p("</ul>\n<div class=\"scroll\">")
	w.WriteString(strings.Replace(c.svg, "<svg", `<svg role="img"`+style, 1))
	p("</div>\n<figcaption>%s</figcaption></figure>\n", c.note)
}

func writeRow(p func(string, ...any), cell string, row []string) {
	p("<tr>")
	for _, text := range row {
		p("<"+cell+">%s</"+cell+">", text)
	}
	p("</tr>\n")
}
