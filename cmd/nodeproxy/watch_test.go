package main

import (
	"net/netip"
	"testing"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
)

func TestEventFilter(t *testing.T) {
	backend := netip.MustParseAddrPort("10.244.2.3:8080")
	translated := view.Event{Verdict: "translate", Service: "default/web:http", Source: netip.MustParseAddrPort("10.244.1.7:4000"),
		Destination: netip.MustParseAddrPort("10.96.0.1:80"), Backend: &backend}
	dropped := view.Event{Verdict: "drop", Source: translated.Source, Destination: translated.Destination}
	for _, c := range []struct {
		f                   eventFilter
		translated, dropped bool
	}{
		{eventFilter{}, true, true},
		{eventFilter{drops: true}, false, true},
		{eventFilter{service: "default/web"}, true, false},
		{eventFilter{service: "default/web:http"}, true, false},
		{eventFilter{service: "default/we"}, false, false},
		{eventFilter{from: "10.244.1.0/24"}, true, true},
		{eventFilter{from: "10.244.1.8"}, false, false},
		{eventFilter{to: "10.96.0.1"}, true, true},
		{eventFilter{to: "10.96.0.1:81"}, false, false},
		{eventFilter{to: "10.244.2.3:8080"}, true, false},
	} {
		if err := c.f.parse(); err != nil {
			t.Fatal(err)
		}
		if got := c.f.shows(&translated); got != c.translated {
			t.Errorf("%+v: translated: %v", c.f, got)
		}
		if got := c.f.shows(&dropped); got != c.dropped {
			t.Errorf("%+v: dropped: %v", c.f, got)
		}
	}
	for _, f := range []eventFilter{{from: "x"}, {to: "10.96.0.1:x"}} {
		if err := f.parse(); err == nil {
			t.Errorf("%+v: no error", f)
		}
	}
}
