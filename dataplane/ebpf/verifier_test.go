package ebpf

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// TestVerifier loads every program, with conntrack's functions and without, so that no
// commit can leave one that the kernel refuses.
func TestVerifier(t *testing.T) {
	needRoot(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	for _, conntrack := range []bool{false, true} {
		t.Run(fmt.Sprintf("conntrack=%t", conntrack), func(t *testing.T) {
			in(t, newNS(t), func() error {
				if err := loadConntrack(&Options{Instance: "default"}); err != nil {
					return err
				}
				return verifyAll(t, conntrack)
			})
		})
	}
}

func verifyAll(t *testing.T, conntrack bool) error {
	spec, err := loadBpf()
	if err != nil {
		return err
	}
	if err := spec.Variables[bpfVarHasConntrack].Set(conntrack); err != nil {
		return err
	}
	var objs bpfObjects
	err = spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		return fmt.Errorf("%+v", ve)
	}
	if err != nil {
		return err
	}
	defer objs.Close()
	fields := reflect.ValueOf(objs.bpfPrograms)
	for i := range fields.NumField() {
		if p, ok := fields.Field(i).Interface().(*ebpf.Program); ok {
			t.Logf("%s: %s", fields.Type().Field(i).Name, strings.Join(strings.Fields(p.VerifierLog), " "))
		}
	}
	return nil
}
