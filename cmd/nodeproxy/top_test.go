package main

import (
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
