package main

import (
	"strings"
	"testing"

	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
)

// Each size that ebpf mode has for what comes from outside is a flag, reaches the mode,
// is part of the memory that is shown, and has the mode's default.
func TestMapSizesAreFlags(t *testing.T) {
	o, err := parse(t, "--source=file:/tmp")
	if err != nil || o.sizes != ebpf.DefaultSizes() {
		t.Fatalf("by default %+v, %v", o.sizes, err)
	}
	memory := func(o ebpf.Options) (sum uint64) {
		maps, err := o.Memory(1)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range maps {
			sum += m.Bytes
		}
		return sum
	}
	before := memory(o.ebpf(nil))
	for _, m := range mapFlags {
		o, err := parse(t, "--source=file:/tmp", "--"+m.name+"=1000000")
		if err != nil {
			t.Fatal(err)
		}
		out := o.ebpf(nil)
		if got := *m.size(&out.Sizes); got != 1000000 {
			t.Errorf("--%s: the mode gets %d", m.name, got)
		}
		if now := memory(out); now <= before {
			t.Errorf("--%s: memory is %d, and by default %d", m.name, now, before)
		}
		for _, bad := range []string{"0", "63", "16777217"} {
			if _, err := parse(t, "--source=file:/tmp", "--"+m.name+"="+bad); err == nil || !strings.Contains(err.Error(), "use 64 to 16777216") {
				t.Errorf("--%s=%s: %v", m.name, bad, err)
			}
		}
	}
	t.Logf("%d MiB by default", before>>20)
	if mib := before >> 20; mib < 50 || mib > 1000 {
		t.Errorf("all maps take %d MiB by default", mib)
	}
}
