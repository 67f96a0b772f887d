package ebpf

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// TestVerifier loads every program, so that no commit can leave one that the
// kernel refuses.
func TestVerifier(t *testing.T) {
	needRoot(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	var objs bpfObjects
	err := loadBpfObjects(&objs, &ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		t.Fatalf("%+v", ve)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer objs.Close()
	fields := reflect.ValueOf(objs.bpfPrograms)
	for i := range fields.NumField() {
		if p, ok := fields.Field(i).Interface().(*ebpf.Program); ok {
			t.Logf("%s: %s", fields.Type().Field(i).Name, strings.Join(strings.Fields(p.VerifierLog), " "))
		}
	}
}
