package ebpf

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"

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

// TestFilterShortOfFlows takes everything out of both filters, again and again,
// while connections are open. Packets that would be reset or dropped for it find
// their flows all the same, in either direction.
func TestFilterShortOfFlows(t *testing.T) {
	n := newTestNet(t)
	n.serveAll(t)
	d := n.start(t, Options{PacketsOnly: true})
	syncAll(t, d, n.table(both(svc{name: "s", backends: to(podRemote, "8080"), policy: service.PolicyCluster})...))
	c := &collector{objs: d.objs, filter: d.filter, t: d.o.Timeouts}
	if _, err := c.pass(c.t); err != nil { // until then every tuple is looked up
		t.Fatal(err)
	}
	for f := range 2 {
		var c net.Conn
		in(t, n.client, func() (err error) {
			c, err = net.DialTimeout(networks[0][f], join(nodeIP[f], "30080"), 2*time.Second)
			return err
		})
		defer c.Close()
		stop := make(chan struct{})
		var emptier sync.WaitGroup
		emptier.Go(func() {
			none := make([]byte, d.objs.FlowFilters.ValueSize())
			for {
				select {
				case <-stop:
					return
				default:
				}
				for which := range uint32(2) {
					if err := d.objs.FlowFilters.Put(which, none); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
		for range 1000 {
			a, err := exchange(c, 3000)
			if wantAnswer(t, a, err, "remote", ""); t.Failed() {
				break
			}
		}
		close(stop)
		emptier.Wait()
	}
}
