package ebpf

import (
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// TestTwoFillTheFilters has two dataplanes of one instance pass over flows all
// the time, as a fresh one beside an agent does: they take turns, and no packet of
// an open flow is taken for one of none.
func TestTwoFillTheFilters(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	o := Options{PacketsOnly: true, PinRoot: bpffs(t) + "/nodeproxy"}
	d := n.start(t, o)
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podRemote, "8080"), policy: service.PolicyCluster})...))
	second := n.start(t, o)
	stop := make(chan struct{})
	var fillers sync.WaitGroup
	for _, d := range []*Dataplane{d, second} {
		c := &collector{objs: d.objs, filter: d.filter, t: d.o.Timeouts}
		fillers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := c.pass(c.t); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 3000 {
		a, err := askFrom(n.client, networks[0][i%2], join(nodeIP[i%2], "30080"), "", 3000)
		wantAnswer(t, a, err, "remote", nodeIP[i%2])
		if t.Failed() {
			break
		}
	}
	close(stop)
	fillers.Wait()
	unlock, err := second.filter.lock(unix.LOCK_NB)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := d.filter.rebuild(nil); !errors.Is(err, errBusy) {
		t.Errorf("while another one has the lock: %v", err)
	}
}
