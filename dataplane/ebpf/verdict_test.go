package ebpf

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Each reason's verdict is what bpf/reason.h says of it, in the order there.
func TestVerdictsAreThoseOfTheHeader(t *testing.T) {
	header, err := os.ReadFile("../../bpf/reason.h")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^\tREASON_([A-Z_]+),\s*/\* (.*) \*/`).FindAllStringSubmatch(string(header), -1)
	if len(found) != len(reasonNames) {
		t.Fatalf("%d reasons in the header, %d here", len(found), len(reasonNames))
	}
	for i, f := range found {
		name, says := strings.ToLower(f[1]), f[2]
		if name != reasonNames[i] {
			t.Errorf("reason %d is %s in the header, %s here", i, name, reasonNames[i])
		}
		want := "noted"
		switch first := strings.FieldsFunc(says, func(r rune) bool { return r == ' ' || r == ':' })[0]; {
		case first == "dropped", first == "rejected", first == "answered":
			want = first
		case strings.HasSuffix(says, ": reset"), strings.Contains(says, " failed"):
			want = "rejected"
		case strings.Contains(says, "left to the packet path"), strings.Contains(says, "unknown datagram, left to the stack"), first == "left":
			want = "passed"
		case strings.Contains(says, "translated"):
			want = "translated"
		}
		if got := verdictOf(name); got != want {
			t.Errorf("%s (%s) is %s, want %s", name, says, got, want)
		}
	}
	for name := range reasonVerdicts {
		if !strings.Contains(strings.Join(reasonNames[:], " "), name) {
			t.Errorf("%s is no reason", name)
		}
	}
}
