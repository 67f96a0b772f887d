package main

import (
	"strconv"
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

func TestParseForwarding(t *testing.T) {
	for arg, want := range map[string]forwarding{
		"80":          {"80", "80", "TCP"},
		"8080:80":     {"8080", "80", "TCP"},
		":80":         {"0", "80", "TCP"},
		"5353:53/udp": {"5353", "53", "UDP"},
		"http":        {"0", "http", "TCP"},
		"8080:http":   {"8080", "http", "TCP"},
	} {
		if got, err := parseForwarding(arg); err != nil || got != want {
			t.Errorf("%s: %+v, %v", arg, got, err)
		}
	}
	for _, arg := range []string{"", "80:", "x:80", "80/sctp", "70000:80"} {
		if _, err := parseForwarding(arg); err == nil || !strings.Contains(err.Error(), "use [LOCAL:]PORT") {
			t.Errorf("%s: %v", arg, err)
		}
	}
	for arg, want := range map[string]string{"svc/web": "services web", "pod/web-1": "pods web-1"} {
		if kind, name, err := parseTarget(arg); err != nil || kind+" "+name != want {
			t.Errorf("%s: %s %s, %v", arg, kind, name, err)
		}
	}
	for _, arg := range []string{"web", "deploy/web", "svc/"} {
		if _, _, err := parseTarget(arg); err == nil {
			t.Errorf("%s: no error", arg)
		}
	}
}

func TestChooseEndpoint(t *testing.T) {
	web := service.Name{Namespace: "default", Name: "web"}
	frontends := []view.Frontend{
		{Service: "default/web:http", Protocol: "TCP", Kind: "ClusterIP", Port: 80},
		{Service: "default/web:http", Protocol: "TCP", Kind: "NodePort", Port: 30080},
		{Service: "default/web:https", Protocol: "TCP", Kind: "ClusterIP", Port: 443},
		{Service: "default/web:dns", Protocol: "UDP", Kind: "ClusterIP", Port: 80},
		{Service: "default/web:range", Protocol: "UDP", Kind: "ClusterIP", Port: 1000, LastPort: 1999},
		{Service: "default/webs", Protocol: "TCP", Kind: "ClusterIP", Port: 80},
	}
	for _, c := range []struct{ port, protocol, want string }{
		{"80", "TCP", "default/web:http 80"}, {"http", "TCP", "default/web:http 80"}, {"443", "TCP", "default/web:https 443"}, {"80", "UDP", "default/web:dns 80"},
		{"1500", "UDP", "default/web:range 1500"}, {"", "TCP", "several ports"}, {"30080", "TCP", "no port 30080"}, {"81", "TCP", "no port 81"},
	} {
		name, port, err := choosePort(frontends, web, c.port, c.protocol)
		got := name + " " + strconv.Itoa(int(port))
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%+v: %s", c, got)
		}
	}
	if _, _, err := choosePort(frontends, service.Name{Namespace: "x", Name: "web"}, "80", "TCP"); err == nil || !strings.Contains(err.Error(), "no Service x/web") {
		t.Errorf("unknown Service: %v", err)
	}
	backends := []view.Backend{
		{Service: "default/web:http", Protocol: "TCP", Address: "10.0.0.1:8080", Share: 0.75, List: "cluster"},
		{Service: "default/web:http", Protocol: "TCP", Address: "10.0.0.2:8080", Share: 0.25, List: "cluster"},
		{Service: "default/web:http", Protocol: "TCP", Address: "[fd00::1]:8080", Share: 1, List: "cluster"},
		{Service: "default/web:http", Protocol: "TCP", Address: "10.0.0.3:8080", Share: 1, List: "local"},
		{Service: "default/web:range", Protocol: "UDP", Address: "10.0.0.4:0", Share: 1, List: "cluster"},
	}
	seen := map[string]int{}
	for range 1000 {
		at, err := chooseBackend(backends, "default/web:http", "TCP", 80)
		if err != nil {
			t.Fatal(err)
		}
		seen[at.String()]++
	}
	if len(seen) != 2 || seen["10.0.0.1:8080"] < 600 || seen["10.0.0.2:8080"] < 100 {
		t.Errorf("chosen: %v", seen)
	}
	if at, err := chooseBackend(backends, "default/web:range", "UDP", 1500); err != nil || at.String() != "10.0.0.4:1500" {
		t.Errorf("of a range: %v, %v", at, err)
	}
	if _, err := chooseBackend(backends, "default/web:https", "TCP", 443); err == nil || !strings.Contains(err.Error(), "no ready endpoint") {
		t.Errorf("without endpoints: %v", err)
	}
}
