package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
)

func topRows(connections uint64) []view.Count {
	return []view.Count{
		{Name: "default/a:http", Protocol: "TCP", FamilyIs: "IPv4", Traffic: view.Traffic{Connections: 5, Drops: 9},
			Backends: []view.BackendCount{{Address: "10.0.0.1:80", Traffic: view.Traffic{Connections: 5}}}},
		{Name: "default/b:dns", Protocol: "UDP", FamilyIs: "IPv6", Traffic: view.Traffic{Connections: connections, Bytes: [2]uint64{2048, 1 << 21}},
			Backends: []view.BackendCount{{Address: "[fd00::1]:53", Traffic: view.Traffic{Connections: connections}}}},
	}
}

// press gives top a key.
func press(m *topModel, key string) tea.Cmd {
	named := map[string]rune{"enter": tea.KeyEnter, "esc": tea.KeyEscape, "down": tea.KeyDown}
	msg := tea.KeyPressMsg{Text: key, Code: []rune(key)[0]}
	if k, ok := named[key]; ok {
		msg = tea.KeyPressMsg{Code: k}
	}
	_, cmd := m.Update(msg)
	return cmd
}

func TestTop(t *testing.T) {
	m := newTopModel(nil, time.Second, topKeys["connections"])
	start := time.Unix(1000, 0)
	m.take(topRows(10), start)
	m.Update(tea.WindowSizeMsg{Width: 120, Height: 30})
	m.Update(looked{rows: topRows(30), at: start.Add(2 * time.Second)})
	lines := strings.Split(m.content(), "\n")
	if !strings.HasPrefix(lines[3], "> default/b:dns") || !strings.Contains(lines[3], "30           10") || !strings.Contains(lines[3], "2.0 KiB   2.0 MiB") {
		t.Errorf("by connections:\n%s", m.content())
	}
	press(m, "d")
	if lines = strings.Split(m.content(), "\n"); !strings.HasPrefix(lines[3], "> default/a:http") {
		t.Errorf("by drops:\n%s", m.content())
	}
	press(m, "down")
	press(m, "enter")
	if text := m.content(); !strings.Contains(text, "backends of default/b:dns") || !strings.Contains(text, "> [fd00::1]:53") || strings.Contains(text, "10.0.0.1") {
		t.Errorf("backends:\n%s", text)
	}
	press(m, "esc")
	if text := m.table(); !strings.Contains(text, "default/a:http") || strings.Contains(text, ">") {
		t.Errorf("back:\n%s", text)
	}
	if press(m, "q") == nil {
		t.Error("q does not end it")
	}
	m.Update(tea.WindowSizeMsg{Width: 80, Height: 5})
	m.Update(looked{rows: topRows(30), at: start.Add(4 * time.Second)})
	if n := strings.Count(m.content(), "default/"); n != 1 {
		t.Errorf("%d lines on a screen of five:\n%s", n, m.content())
	}
}

// A look that finds the same reading of the counters changes no rate, and a rate is
// that of the time between two readings, whenever they are asked for.
func TestTopRatesAreOfTheReadings(t *testing.T) {
	start := time.Unix(1000, 0)
	read := func(n uint64, at time.Time) []view.Count {
		return []view.Count{{Name: "default/a:http", Protocol: "TCP", FamilyIs: "IPv4", At: at, NoBytes: true, Traffic: view.Traffic{Connections: n}}}
	}
	m := newTopModel(nil, time.Second, topKeys["connections"])
	m.take(read(0, start), start)
	for _, step := range []struct{ look, counted, n, want int }{
		{2, 0, 0, 0}, {4, 0, 0, 0}, {6, 5, 50, 10}, {8, 5, 50, 10}, {10, 5, 50, 10}, {12, 10, 100, 10}, {14, 10, 100, 10},
	} {
		m.take(read(uint64(step.n), start.Add(time.Duration(step.counted)*time.Second)), start.Add(time.Duration(step.look)*time.Second))
		if got := m.lines()[0].perSecond.Connections; got != uint64(step.want) {
			t.Errorf("after %d s: %d a second, want %d", step.look, got, step.want)
		}
	}
	if text := m.table(); !strings.Contains(text, "?") || strings.Contains(text, "0 B") {
		t.Errorf("bytes that nobody counts are shown as a number:\n%s", text)
	}
}

// One table of an output that is no terminal has rates too.
func TestTopWaitsForASecondReading(t *testing.T) {
	start, asked := time.Unix(1000, 0), 0
	read := func(context.Context) ([]view.Count, error) {
		asked++
		at, n := start, uint64(0)
		if asked > 3 {
			at, n = start.Add(5*time.Second), 100
		}
		return []view.Count{{Name: "default/a:http", Protocol: "TCP", FamilyIs: "IPv4", At: at, Traffic: view.Traffic{Connections: n}}}, nil
	}
	m := newTopModel(read, time.Millisecond, topKeys["connections"])
	first, _ := read(t.Context())
	m.take(first, start)
	if _, err := m.again(t.Context(), first); err != nil || m.lines()[0].perSecond.Connections != 20 {
		t.Errorf("%v: %+v", err, m.lines())
	}
}

// On every screen the keys are on the last line, and what is cut off is marked.
func TestTopFitsTheScreen(t *testing.T) {
	var rows []view.Count
	for i := range 40 {
		rows = append(rows, view.Count{Name: fmt.Sprintf("namespace/service-%d:http", i), Protocol: "TCP", FamilyIs: "IPv4"})
	}
	for _, size := range [][2]int{{80, 24}, {110, 12}, {110, 9}, {70, 24}, {40, 6}} {
		m := newTopModel(nil, time.Second, topKeys["name"])
		m.take(rows, time.Unix(1000, 0))
		m.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		lines := strings.Split(m.content(), "\n")
		if len(lines) != size[1] || !strings.HasPrefix(lines[len(lines)-1], "[enter] backends") {
			t.Errorf("%v: %d lines, the last is %q", size, len(lines), lines[len(lines)-1])
		}
		for _, line := range lines {
			if n := len([]rune(line)); n > size[0] {
				t.Errorf("%v: a line of %d columns: %q", size, n, line)
			}
		}
		if cut := strings.Contains(m.content(), "…"); cut != (size[0] < 110) {
			t.Errorf("%v: marked as cut: %t", size, cut)
		}
	}
}
