package bench

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// chart is a picture of the report.
type chart struct {
	title, note, svg string
	columns          []string // that have a line, for the legend
	width            int      // of the drawing, in its own units
}

// colours tell columns apart; relatives have relatives.
var colours = map[string]color.RGBA{
	Bare:        {0x77, 0x77, 0x77, 0xff},
	IPTablesNFT: {0x1f, 0x5f, 0xa8, 0xff}, IPTablesLegacy: {0x7a, 0xb3, 0xe8, 0xff},
	EBPF: {0x1b, 0x7d, 0x3b, 0xff}, EBPFPackets: {0x7f, 0xc9, 0x7f, 0xff},
	EBPFStack: {0x00, 0x8b, 0x8b, 0xff}, EBPFBefore: {0x8b, 0x5a, 0x2b, 0xff}, EBPFPacketsBefore: {0xc9, 0xa6, 0x6b, 0xff},
	KubeProxyIPTables: {0xd9, 0x5f, 0x02, 0xff}, KubeProxyNFTables: {0xb2, 0x18, 0x2b, 0xff},
}

// shapes tell columns apart without colours; sign is the shape as a letter, for legends.
var shapes = map[string]struct {
	glyph draw.GlyphDrawer
	sign  string
}{
	Bare:        {draw.CircleGlyph{}, "●"},
	IPTablesNFT: {draw.BoxGlyph{}, "■"}, IPTablesLegacy: {draw.SquareGlyph{}, "□"},
	EBPF: {draw.PyramidGlyph{}, "▲"}, EBPFPackets: {draw.TriangleGlyph{}, "△"},
	EBPFStack: {draw.RingGlyph{}, "○"}, EBPFBefore: {draw.PyramidGlyph{}, "▲"}, EBPFPacketsBefore: {draw.TriangleGlyph{}, "△"},
	KubeProxyIPTables: {draw.CrossGlyph{}, "×"}, KubeProxyNFTables: {draw.PlusGlyph{}, "+"},
}

// point is one of a line, with its spread.
type point struct{ x, y, low, high float64 }

// noisy reports whether its quartiles are far apart.
func (p point) noisy() bool { return Summary{Median: p.y, Low: p.low, High: p.high}.Noisy() }

// series is the line of a column.
type series struct {
	column string
	points []point
}

// figure is what a chart shows.
type figure struct {
	title, note, x, y string
	better            string // which way is better, in words
	series            []series
	logX, logY        bool
	xTicks, yTicks    []plot.Tick // empty: chosen by the axis
	one               bool        // draw a line at 1, which is bare
	scatter           bool        // points stand for themselves
}

// charts returns all charts that there are figures for.
func charts(t *Table) (out []chart) {
	var figures []figure
	figures = append(figures, ratioFigures(t)...)
	figures = append(figures, scaleFigures(t)...)
	figures = append(figures, latencyFigures(t)...)
	figures = append(figures, controlFigures(t)...)
	for _, f := range figures {
		if len(f.series) == 0 {
			continue
		}
		svg, err := f.drawn()
		if err != nil {
			f.note = fmt.Sprintf("This chart is left out: %v. The figures are in the tables.", err)
		}
		c := chart{title: f.title, note: f.caption(), svg: svg, width: f.width()}
		for _, s := range f.series {
			c.columns = append(c.columns, s.column)
		}
		out = append(out, c)
	}
	return out
}

// A chart is as wide as a phone's screen, so that its text is as large there as it is
// meant to be; one of many cases is wider, and scrolls.
const (
	chartWidth  = 400
	chartHeight = 270
	caseWidth   = 62 // the label of a case
	axisWidth   = 60
)

func (f figure) width() int { return max(chartWidth, axisWidth+caseWidth*len(f.xTicks)) }

// caption is what stands below the chart: which way is better, and what is drawn.
func (f figure) caption() string {
	words := f.better
	if f.note != "" {
		words += " " + f.note
	}
	for _, s := range f.series {
		if slices.ContainsFunc(s.points, point.noisy) {
			return words + " Points in a ring are noisy: see below."
		}
	}
	return words
}

// svg draws the figure as an SVG element that stands within a page.
func (f figure) svg() (string, error) {
	p := plot.New()
	text := func(style *draw.TextStyle, size vg.Length) {
		style.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
	}
	text(&p.X.Label.TextStyle, 11)
	text(&p.Y.Label.TextStyle, 11)
	text(&p.X.Tick.Label, 10)
	text(&p.Y.Tick.Label, 10)
	p.X.Label.Text, p.Y.Label.Text = f.x, f.y
	p.X.Tick.Marker, p.Y.Tick.Marker = ticker(f.xTicks, p.X.Tick.Marker), ticker(f.yTicks, p.Y.Tick.Marker)
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Gray{0xe4}, color.Gray{0xf2}
	p.Add(grid)
	for _, s := range f.series {
		if err := f.add(p, s); err != nil {
			return "", err
		}
	}
	if f.logX {
		setLog(&p.X)
	}
	if f.logY {
		setLog(&p.Y)
	}
	if f.scatter {
		p.X.Min, p.X.Max = -0.5, float64(len(f.xTicks))-0.5
	}
	if f.one {
		one := plotter.NewFunction(func(float64) float64 { return 1 })
		one.Color, one.Dashes = colours[Bare], []vg.Length{4, 3}
		p.Add(one)
		p.Y.Min, p.Y.Max = math.Min(p.Y.Min, 0.9), math.Max(p.Y.Max, 1.05)
	} else if !f.logY {
		p.Y.Min = math.Min(p.Y.Min, 0)
	}
	canvas := vgsvg.New(vg.Length(f.width()), chartHeight)
	p.Draw(draw.Crop(draw.New(canvas), 2, -10, 4, -8)) // the legend stands in the page
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return "", err
	}
	return inline(out.String()), nil
}

func ticker(ticks []plot.Tick, otherwise plot.Ticker) plot.Ticker {
	if len(ticks) > 0 {
		return plot.ConstantTicks(ticks)
	}
	return exactTicks{otherwise}
}

// inline makes a part of a page of an SVG document.
func inline(svg string) string {
	svg = svg[strings.Index(svg, "<svg"):]
	svg = strings.ReplaceAll(svg, "font-family:Liberation Sans", "font-family:Liberation Sans,Arial,Helvetica,sans-serif")
	return svg
}

func (f figure) add(p *plot.Plot, s series) error {
	c := colours[s.column]
	var bars struct {
		plotter.XYs
		plotter.YErrors
	}
	spread := false
	for _, pt := range s.points {
		bars.XYs = append(bars.XYs, plotter.XY{X: pt.x, Y: pt.y})
		bars.YErrors = append(bars.YErrors, struct{ Low, High float64 }{pt.low - pt.y, pt.high - pt.y})
		spread = spread || pt.low != pt.high
	}
	if !f.scatter {
		line, err := plotter.NewLine(bars.XYs)
		if err != nil {
			return err
		}
		line.Color, line.Width = c, 1.6
		p.Add(line)
	}
	if spread {
		whiskers, err := plotter.NewYErrorBars(bars)
		if err != nil {
			return err
		}
		whiskers.Color, whiskers.Width, whiskers.CapWidth = c, 1, 4
		p.Add(whiskers)
	}
	if f.scatter || len(s.points) < 30 {
		dots, err := plotter.NewScatter(bars.XYs)
		if err != nil {
			return err
		}
		dots.Color, dots.Shape, dots.Radius = c, shapes[s.column].glyph, 3
		p.Add(dots)
	}
	return f.ring(p, s)
}

// ring draws a ring around each noisy point.
func (f figure) ring(p *plot.Plot, s series) error {
	var noisy plotter.XYs
	for _, pt := range s.points {
		if pt.noisy() {
			noisy = append(noisy, plotter.XY{X: pt.x, Y: pt.y})
		}
	}
	if len(noisy) == 0 {
		return nil
	}
	rings, err := plotter.NewScatter(noisy)
	if err != nil {
		return err
	}
	rings.Color, rings.Shape, rings.Radius = colours[s.column], draw.RingGlyph{}, 6
	p.Add(rings)
	return nil
}

// worksOf returns the works of keys, in the order in which they came.
func worksOf(keys []Key) []string {
	var out []string
	for _, k := range keys {
		if !slices.Contains(out, k.Work) {
			out = append(out, k.Work)
		}
	}
	return out
}

// ratioFigures has a figure for each work: all its cases side by side.
func ratioFigures(t *Table) []figure {
	var out []figure
	all := t.Keys(isRate)
	for _, work := range worksOf(all) {
		keys := slices.DeleteFunc(slices.Clone(all), func(k Key) bool { return k.Work != work })
		cases := casesOf(keys)
		columns := slices.DeleteFunc(columnsOf(keys), func(c string) bool { return c == Bare })
		f := figure{title: fmt.Sprintf("%s: %s, compared with bare", work, workWords(work)), note: "Medians; whiskers are quartiles. The dashed line, 1, is bare.",
			better: "Higher is better.", x: "way to the Service, number of Services, variant", y: "× bare", one: true, scatter: true}
		for i, c := range cases {
			f.xTicks = append(f.xTicks, plot.Tick{Value: float64(i), Label: caseLabel(c)})
		}
		for j, column := range columns {
			s := series{column: column}
			for i, c := range cases {
				c.Column = column
				if r := t.OfBare(c); r.N > 0 {
					shift := (float64(j) - float64(len(columns)-1)/2) * 0.7 / float64(max(len(columns), 4))
					s.points = append(s.points, point{float64(i) + shift, r.Median, r.Low, r.High})
				}
			}
			if len(s.points) > 0 {
				f.series = append(f.series, s)
			}
		}
		// A picture with dozens of cases says nothing; the table has them.
		if len(cases) <= 14 {
			out = append(out, f)
		}
	}
	return out
}

func caseLabel(c Key) string {
	cells := caseCells(c)
	path := strings.NewReplacer("nodeport-", "NodePort\n", "cluster", "ClusterIP", "external", "externalIP").Replace(cells[1])
	label := path + "\n" + cells[2]
	if cells[3] != "" {
		label += "\n" + cells[3]
	}
	return label
}

// scaleFigures show what becomes of a ratio with more Services.
func scaleFigures(t *Table) []figure {
	var out []figure
	all := t.Keys(func(k Key) bool { return isRate(k) && k.Column != Bare })
	for _, c := range casesOf(all) {
		c.Services = 0
		f := figure{title: fmt.Sprintf("%s, %s, IPv%d: compared with bare, by number of Services", c.Work, pathTitle(c), c.Family),
			note: "Medians; whiskers are quartiles. The dashed line, 1, is bare.", better: "Higher is better.", x: "number of Services", y: "× bare", logX: true, one: true}
		if slices.ContainsFunc(out, func(g figure) bool { return g.title == f.title }) {
			continue
		}
		f.series = bySize(all, c, func(k Key) (point, bool) {
			r := t.OfBare(k)
			return point{0, r.Median, r.Low, r.High}, r.N > 0
		})
		if len(f.series) > 0 && len(f.series[0].points) > 1 {
			out = append(out, f)
		}
	}
	return out
}

func pathTitle(c Key) string {
	cells := caseCells(c)
	return strings.TrimSpace(c.Path + " " + cells[3])
}

// bySize returns a line for each column: what of returns for the keys that
// differ from c in column and number of Services only.
func bySize(keys []Key, c Key, of func(Key) (point, bool)) []series {
	var out []series
	for _, column := range columnsOf(keys) {
		s := series{column: column}
		for _, k := range keys {
			same := k
			same.Services, same.Column = c.Services, c.Column
			if k.Column != column || same != c {
				continue
			}
			if p, ok := of(k); ok {
				p.x = float64(k.Services)
				s.points = append(s.points, p)
			}
		}
		slices.SortFunc(s.points, func(a, b point) int { return int(a.x - b.x) })
		if len(s.points) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// latencyFigures show whole distributions, on an axis of nines.
func latencyFigures(t *Table) []figure {
	var out []figure
	all := t.Keys(func(k Key) bool { return !isControl(k.Work) && t.Latency(k) != nil })
	largest := map[Key]int{} // of each case, the figure with most Services
	for _, c := range casesOf(all) {
		n := c.Services
		c.Services = 0
		largest[c] = max(largest[c], n)
	}
	for _, c := range casesOf(all) {
		small := c
		small.Services = 0
		if largest[small] != c.Services || c.Endpoints > 1 || c.Position == First {
			continue
		}
		f := figure{title: fmt.Sprintf("%s, %s, IPv%d, %d Services: latency", c.Work, pathTitle(c), c.Family, c.Services),
			better: "Further left is better.", note: "All rounds together.", x: "latency, µs", y: "% of operations that are faster", logX: true, yTicks: nines}
		for _, column := range columnsOf(all) {
			k := c
			if k.Column = column; column == Bare {
				k = c.BareKey()
			}
			if s := distribution(t, k); len(s.points) > 1 {
				f.series = append(f.series, s)
			}
		}
		out = append(out, f)
	}
	return out
}

var nines = func() (ticks []plot.Tick) {
	for _, q := range []float64{0, 50, 90, 99, 99.9, 99.99} {
		ticks = append(ticks, plot.Tick{Value: nine(q), Label: fmt.Sprint(q)})
	}
	return ticks
}()

// nine is the place of a percentile on an axis on which each further nine
// takes the same room.
func nine(q float64) float64 { return -math.Log10(1 - q/100) }

func distribution(t *Table, k Key) series {
	s := series{column: k.Column}
	h := t.Latency(k)
	if h == nil {
		return s
	}
	last := math.Min(4, math.Log10(float64(h.TotalCount()))) // beyond it there is one sample
	for at := 0.0; at <= last; at += 0.04 {
		us := float64(h.ValueAtQuantile(100*(1-math.Pow(10, -at)))) / 1e3
		s.points = append(s.points, point{us, at, at, at})
	}
	return s
}

// controlFigures show the control plane by number of Services.
func controlFigures(t *Table) []figure {
	keys := t.Keys(func(k Key) bool { return isControl(k.Work) })
	var out []figure
	for _, f := range []struct {
		work, title, y string
		of             func(Sample) float64
	}{
		{WorkStart, "Start of the agent to the first traffic", "s", func(s Sample) float64 { return s.Value }},
		{WorkStart, "Largest memory of the agent until then", "MB", func(s Sample) float64 { return float64(s.Agent.PeakRSS) / 1e6 }},
		{WorkChange, "A change is written to the first packet that follows, median", "ms", func(s Sample) float64 { return s.Value * 1e3 }},
		{WorkChange, "CPU time of the agent for one change", "ms", func(s Sample) float64 { return s.Agent.CPU * 1e3 }},
		{WorkRestart, "Longest time without a connection while the agent is killed and started", "ms", func(s Sample) float64 { return s.Gap * 1e3 }},
	} {
		lines := bySize(keys, Key{Family: 4, Work: f.work}, func(k Key) (point, bool) {
			var values []float64
			for _, s := range t.Samples(k) {
				values = append(values, f.of(s))
			}
			r := Summarize(values)
			return point{0, r.Median, r.Low, r.High}, r.Median > 0 // what a log axis has room for
		})
		out = append(out, figure{title: f.title, better: "Lower is better.", x: "number of Services", y: f.y, series: lines, logX: true, logY: true})
	}
	return out
}
