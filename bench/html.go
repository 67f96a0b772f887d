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
body { font: 15px/1.5 sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.15em; margin-top: 2em; } h3 { font-size: 1em; margin: 0 0 .2em; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
td, th { padding: .25em .7em; border-bottom: 1px solid #e4e4e4; text-align: right; white-space: nowrap; }
th { background: #f5f5f5; } td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); gap: 1.5em; }
figure { margin: 0; } figure svg { width: 100%; height: auto; } figcaption, .note { color: #666; font-size: 13px; }
.failures { color: #a40000; }
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
	p("<h2>Charts</h2>\n<div class=\"charts\">\n")
	for _, c := range pictures {
		p("<figure><h3>%s</h3>", c.title)
		w.WriteString(c.svg)
		p("<figcaption>%s</figcaption></figure>\n", c.note)
	}
	p("</div>\n")
	for _, t := range textTables(t) {
		p("<h2>%s</h2>\n<table>", t.title)
		writeRow(p, "th", t.header)
		for _, row := range t.rows {
			writeRow(p, "td", row)
		}
		p("</table>\n")
	}
	p("</html>\n")
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	return nil
}

func writeRow(p func(string, ...any), cell string, row []string) {
	p("<tr>")
	for _, text := range row {
		p("<"+cell+">%s</"+cell+">", text)
	}
	p("</tr>\n")
}
