package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
)

// topKeys are the orders of top's lines.
var topKeys = map[string]func(a, b *topLine) int{
	"connections": func(a, b *topLine) int { return cmp.Compare(b.Connections, a.Connections) },
	"bytes":       func(a, b *topLine) int { return cmp.Compare(b.bytes(), a.bytes()) },
	"drops":       func(a, b *topLine) int { return cmp.Compare(b.Drops, a.Drops) },
	"name":        func(a, b *topLine) int { return 0 },
}

// topModel is the state of top; it implements tea.Model.
type topModel struct {
	read  func(context.Context) ([]view.Count, error)
	every time.Duration
	order func(a, b *topLine) int
	err   error

	rows   []view.Count
	seen   map[string]counted // at the look before, by key of a line
	rates  map[string]view.Traffic
	at     time.Time
	opened string // key of the Service whose backends are shown
	cursor int
	height int
	width  int
}

// counted is what a line showed, and when it was counted.
type counted struct {
	view.Traffic
	at time.Time
}

func newTopModel(read func(context.Context) ([]view.Count, error), every time.Duration, order func(a, b *topLine) int) *topModel {
	return &topModel{read: read, every: every, order: order, seen: map[string]counted{}, rates: map[string]view.Traffic{}}
}

// looked is the answer to a look.
type looked struct {
	rows []view.Count
	err  error
	at   time.Time
}

// Init implements tea.Model.
func (m *topModel) Init() tea.Cmd { return m.later() }

func (m *topModel) later() tea.Cmd {
	return tea.Tick(m.every, func(time.Time) tea.Msg {
		rows, err := m.read(context.Background())
		return looked{rows, err, time.Now()}
	})
}

// Update implements tea.Model.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case looked:
		if msg.err != nil {
			m.err = msg.err
			return m, tea.Quit
		}
		m.take(msg.rows, msg.at)
		return m, m.later()
	case tea.WindowSizeMsg:
		m.height, m.width = msg.Height, msg.Width
	case tea.KeyPressMsg:
		return m, m.key(msg.String())
	}
	return m, nil
}

func (m *topModel) key(k string) tea.Cmd {
	lines := m.lines()
	switch k {
	case "q", "ctrl+c":
		return tea.Quit
	case "up", "k":
		m.cursor = max(0, m.cursor-1)
	case "down", "j":
		m.cursor = max(0, min(len(lines)-1, m.cursor+1))
	case "enter":
		if m.opened == "" && m.cursor < len(lines) {
			m.opened, m.cursor = lines[m.cursor].key, 0
		}
	case "esc", "left", "backspace":
		m.opened, m.cursor = "", 0
	case "c", "b", "d", "n":
		for name, order := range topKeys {
			if strings.HasPrefix(name, k) {
				m.order = order
			}
		}
	}
	return nil
}

// take notes a look, and what came since the one before.
func (m *topModel) take(rows []view.Count, now time.Time) {
	seen := map[string]counted{}
	note := func(key string, t view.Traffic, at time.Time) {
		if at.IsZero() {
			at = now
		}
		before, ok := m.seen[key]
		seconds := at.Sub(before.at).Seconds()
		if ok && seconds <= 0 { // the same reading once more: its rate stands
			seen[key] = before
			return
		}
		if seen[key] = (counted{t, at}); !ok {
			return
		}
		since := func(now, before uint64) uint64 { return uint64(float64(now-min(now, before))/seconds + 0.5) }
		rate := view.Traffic{Connections: since(t.Connections, before.Connections), Drops: since(t.Drops, before.Drops)}
		for i := range rate.Bytes {
			rate.Bytes[i] = since(t.Bytes[i], before.Bytes[i])
		}
		m.rates[key] = rate
	}
	for _, r := range rows {
		note(keyOf(&r), r.Traffic, r.At)
		for _, b := range r.Backends {
			note(keyOf(&r)+b.Address, b.Traffic, r.At)
		}
	}
	m.rows, m.seen, m.at = rows, seen, now
	m.cursor = max(0, min(m.cursor, len(m.lines())-1))
}

func keyOf(r *view.Count) string { return r.Name + "/" + r.Protocol + "/" + r.FamilyIs + " " }

// lines are those to show, in their order.
func (m *topModel) lines() []topLine {
	var out []topLine
	for i := range m.rows {
		r := &m.rows[i]
		key := keyOf(r)
		switch m.opened {
		case "":
			out = append(out, topLine{key, r.Name, r.Protocol + "/" + r.FamilyIs, r.NoBytes, r.Traffic, m.rates[key]})
		case key:
			for _, b := range r.Backends {
				out = append(out, topLine{key + b.Address, b.Address, r.Protocol, r.NoBytes, b.Traffic, m.rates[key+b.Address]})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b topLine) int { return m.order(&a, &b) })
	return out
}

// table is everything there is, for an output that is no terminal.
func (m *topModel) table() string { return tableOf("SERVICE", m.lines(), -1) }

// View implements tea.Model. What was on the screen comes back at the end.
func (m *topModel) View() tea.View {
	return tea.View{Content: m.content(), AltScreen: true}
}

func (m *topModel) content() string {
	lines, what, head := m.lines(), "SERVICE", "nodeproxy top  "
	if m.opened != "" {
		what = "BACKEND"
		head += "backends of " + m.opened
	} else {
		head += fmt.Sprintf("%d ports of Services", len(lines))
	}
	first := 0
	if room := max(1, m.height-frameLines); m.height > 0 && len(lines) > room { // around the cursor
		first = max(0, min(m.cursor-room/2, len(lines)-room))
		lines = lines[first : first+room]
	}
	keys, none := "[enter] backends", ""
	if m.opened != "" {
		keys = "[esc] back"
		if len(lines) == 0 { // ebpf mode counts a backend from its first flow on
			none = "  none has had a flow yet\n"
		}
	}
	return clip(head+"\n\n"+tableOf(what, lines, m.cursor-first)+none+"\n"+keys+"  [c]onnections [b]ytes [d]rops [n]ame  [q]uit", m.width)
}

// frameLines are what stands around the lines: a head, the heading, the keys, and
// two empty ones.
const frameLines = 5

// clip shows what is too wide for the screen as cut off, instead of cutting it in
// silence. width is 0 where it is not known.
func clip(text string, width int) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if runes := []rune(line); width > 0 && len(runes) > width {
			lines[i] = string(runes[:width-1]) + "…"
		}
	}
	return strings.Join(lines, "\n")
}
