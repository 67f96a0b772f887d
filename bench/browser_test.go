package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/bench/load"
)

// seen is what a browser tells of a page.
type seen struct {
	Width, ScrollWidth int
	Charts             []struct {
		Title        string
		Shapes       int     // that are drawn inside of the chart
		Outside      int     // texts that are beyond its edge
		SmallestText float64 // in CSS pixels
		Legend       int
	}
	EmptyHeads int
}

// look is a program for the browser, which writes what it sees of a page into the one
// around it.
const look = `<script>
addEventListener("load", () => {
  const charts = [...document.querySelectorAll("figure")].map(f => {
    const svg = f.querySelector("svg"), box = svg ? svg.getBoundingClientRect() : null;
    const inside = r => r.width + r.height > 0 && r.left >= box.left - 1 && r.right <= box.right + 1 && r.top >= box.top - 1 && r.bottom <= box.bottom + 1;
    const texts = svg ? [...svg.querySelectorAll("text")].filter(t => t.textContent.trim()) : [];
    const size = t => { const m = t.getScreenCTM(); return parseFloat(getComputedStyle(t).fontSize) * Math.hypot(m.a, m.b); };
    return { Title: f.querySelector("h3").textContent, Shapes: svg ? [...svg.querySelectorAll("path")].filter(e => inside(e.getBoundingClientRect())).length : 0,
      Outside: texts.filter(t => !inside(t.getBoundingClientRect())).length, SmallestText: Math.min(...texts.map(size)), Legend: f.querySelectorAll(".legend li").length };
  });
  parent.document.getElementById("seen").textContent = JSON.stringify({ Width: innerWidth, ScrollWidth: document.documentElement.scrollWidth, Charts: charts,
    EmptyHeads: [...document.querySelectorAll("th")].filter(h => !h.textContent.trim()).length });
});
</script>`

// browse opens a page in Chromium, and returns its DOM and what it complained of on the
// console.
func browse(t *testing.T, page string, more ...string) (dom, console string) {
	t.Helper()
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("no chromium: run make deps-test")
	}
	if more == nil {
		more = []string{"--virtual-time-budget=10000", "--timeout=60000", "--dump-dom"}
	}
	cmd := exec.CommandContext(t.Context(), browser, append(append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
		"--user-data-dir=" + t.TempDir(), "--enable-logging=stderr", "--log-level=0", "--window-size=1400,1000"}, more...), "file://"+page)...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &errs, time.Second
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatalf("chromium: %v\n%s", err, errs.String())
	}
	for line := range strings.Lines(errs.String()) {
		if strings.Contains(line, "CONSOLE") {
			console += line
		}
	}
	return out.String(), console
}

// aRun has figures of every kind, in every column, with one size for the control plane and
// several for the rest; every third figure of a column is noisy.
func aRun(t *testing.T) (Run, []Sample) {
	t.Helper()
	run := Run{Started: time.Unix(0, 0), Version: "nodeproxy test", Machine: Machine{System: "a <machine>", CPUs: 2, Kernel: "6.1"}}
	var samples []Sample
	h := load.NewHistogram()
	for i := range 2000 {
		if err := h.RecordValue(int64(20000 + i*i)); err != nil {
			t.Fatal(err)
		}
	}
	latency, err := load.EncodeHistogram(h)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		for j, column := range columnNames {
			for _, work := range []string{WorkConnect, WorkTCP1, WorkRequest} {
				for _, path := range []string{PathCluster, PathNodePortLocal, PathNodePortRemote} {
					for _, n := range []int{1, 1000, 10000} {
						k := Key{Column: column, Family: 4, Services: n, Path: path, Endpoints: 1, Position: Last, Work: work}
						if column == Bare {
							k = k.BareKey()
						}
						value := 1000 * (1 - 0.08*float64(j))
						if j == 3 && n == 1000 {
							value *= 1 + 0.3*float64(round%3)
						}
						samples = append(samples, Sample{Key: k, Round: round, Value: value, Latency: latency})
					}
				}
			}
			if column == Bare {
				continue
			}
			for _, work := range controlWorks {
				s := Sample{Key: Key{Column: column, Family: 4, Services: 1, Work: work}, Round: round, Value: 0.27, Gap: 0.001}
				s.Agent.PeakRSS, s.Agent.CPU = 1<<25, 0.01
				samples = append(samples, s)
			}
		}
	}
	return run, samples
}

// The page is what it should be in a real browser, on a desk and on a telephone: no
// error on the console, nothing wider than the screen, every chart drawn, with a
// legend, and text that can be read.
func TestPageInABrowser(t *testing.T) {
	run, samples := aRun(t)
	var page strings.Builder
	if err := WriteHTML(&page, run, samples); err != nil {
		t.Fatal(err)
	}
	for _, width := range []int{1200, 420} {
		// A window of a browser has a least width; a frame in it has none.
		frame := fmt.Sprintf(`<!DOCTYPE html><pre id="seen"></pre><iframe style="border: 0; width: %dpx; height: 900px" srcdoc="%s"></iframe>`,
			width, html.EscapeString(strings.Replace(page.String(), "</html>", look+"</html>", 1)))
		path := filepath.Join(t.TempDir(), "page.html")
		if err := os.WriteFile(path, []byte(frame), 0o644); err != nil {
			t.Fatal(err)
		}
		dom, console := browse(t, path)
		if console != "" {
			t.Errorf("%d pixels wide: the console says\n%s", width, console)
		}
		_, text, _ := strings.Cut(dom, `<pre id="seen">`)
		text, _, _ = strings.Cut(text, "</pre>")
		var s seen
		if err := json.Unmarshal([]byte(html.UnescapeString(text)), &s); err != nil {
			t.Fatalf("the browser has seen %q: %v", text, err)
		}
		if s.Width != width {
			t.Errorf("the page is seen %d pixels wide, not %d", s.Width, width)
		}
		if s.ScrollWidth > s.Width {
			t.Errorf("the page is %d pixels wide in a window of %d", s.ScrollWidth, s.Width)
		}
		if s.EmptyHeads > 0 {
			t.Errorf("%d columns have no heading", s.EmptyHeads)
		}
		if len(s.Charts) < 15 {
			t.Errorf("%d charts", len(s.Charts))
		}
		for _, c := range s.Charts {
			if c.Shapes < 10 || c.Legend == 0 || c.Outside > 0 {
				t.Errorf("%d pixels wide, %s: %d shapes, %d columns in the legend, %d texts cut off", s.Width, c.Title, c.Shapes, c.Legend, c.Outside)
			}
			if c.SmallestText < 9 {
				t.Errorf("%d pixels wide, %s: text of %.1f pixels", s.Width, c.Title, c.SmallestText)
			}
		}
	}
}

// The page can be printed.
func TestPageIsPrinted(t *testing.T) {
	run, samples := aRun(t)
	var page strings.Builder
	if err := WriteHTML(&page, run, samples); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, paper := filepath.Join(dir, "page.html"), filepath.Join(dir, "page.pdf")
	if err := os.WriteFile(path, []byte(page.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, console := browse(t, path, "--print-to-pdf="+paper); console != "" {
		t.Errorf("the console says\n%s", console)
	}
	pdf, err := os.ReadFile(paper)
	if err != nil || !strings.HasPrefix(string(pdf), "%PDF") {
		t.Fatalf("nothing was printed: %v", err)
	}
	if pages := strings.Count(string(pdf), "/Type /Page\n"); pages < 3 || pages > 20 {
		t.Errorf("%d sheets of paper", pages)
	}
}

// What a browser complains of is noticed: the test above cannot pass for another reason.
func TestConsoleOfTheBrowserIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.html")
	if err := os.WriteFile(path, []byte("<!DOCTYPE html><script>undefinedFunction()</script>"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, console := browse(t, path); !strings.Contains(console, "undefinedFunction") {
		t.Errorf("the console of a page with an error: %q", console)
	}
}

// Words, units and directions are in the page and in the tables, and noisy figures are
// marked in both.
func TestReportExplainsItself(t *testing.T) {
	run, samples := aRun(t)
	var page, text strings.Builder
	if err := errors.Join(WriteHTML(&page, run, samples), WriteText(&text, run, samples)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"new TCP connections a second, one after the other", "kube-proxy, mode nftables", "a client outside dials a node port of another node",
		"noisy", noisyMark, "igher is better", "ower is better", "variant", "start CPU", "churn p99"} {
		if !strings.Contains(page.String(), want) || !strings.Contains(text.String(), want) {
			t.Errorf("%q is in the page: %v, in the tables: %v", want, strings.Contains(page.String(), want), strings.Contains(text.String(), want))
		}
	}
	for _, want := range []string{"Further left is better.", "Points in a ring are noisy", "@media print", "latency, µs", "× bare"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("%q is not in the page", want)
		}
	}
	for _, table := range textTables(NewTable(samples)) {
		heads := map[string]bool{}
		for _, h := range table.header {
			if h == "" || heads[h] {
				t.Errorf("%s: heading %q, twice or empty", table.title, h)
			}
			heads[h] = true
		}
	}
	quiet := Summarize([]float64{1, 1.01, 1.02})
	if noisy := Summarize([]float64{1, 2, 3}); quiet.Noisy() || !noisy.Noisy() {
		t.Errorf("noisy: %v of a quiet run, %v of another", quiet.Noisy(), noisy.Noisy())
	}
}
