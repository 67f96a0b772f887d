//go:build !agent

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/bench"
)

// The tables are printed before the page is drawn: what was measured is not lost with a
// page that cannot be written.
func TestTablesComeBeforeThePage(t *testing.T) {
	dir := t.TempDir()
	file, err := bench.CreateFile(dir, bench.Run{Started: time.Now(), Version: "test", Options: bench.PresetOptions(bench.Quick)})
	if err != nil {
		t.Fatal(err)
	}
	key := bench.Key{Column: bench.EBPF, Family: 4, Services: 1, Work: bench.WorkStart}
	if err := file.Append(bench.Sample{Key: key, Value: 0.27}); err != nil {
		t.Fatal(err)
	}
	path := file.Path()
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	page := strings.TrimSuffix(path, filepath.Ext(path)) + ".html"
	if err := os.Mkdir(page, 0o755); err != nil { // nothing can be written there
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetOut(&out)
	if err := report(path, cmd); err == nil || !strings.Contains(out.String(), "Control plane") || !strings.Contains(out.String(), "270ms") {
		t.Errorf("error %v, and before it\n%s", err, out.String())
	}
	if err := os.Remove(page); err != nil {
		t.Fatal(err)
	}
	if err := report(path, cmd); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(page); err != nil || !strings.Contains(string(text), "<svg") {
		t.Errorf("the page has no chart: %v", err)
	}
}
