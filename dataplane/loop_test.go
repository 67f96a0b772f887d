package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nodeproxy/nodeproxy/internal/synth"
	"github.com/nodeproxy/nodeproxy/service"
)

// recorder is a Dataplane that says what it was asked and fails on demand.
type recorder struct {
	start time.Time
	syncs []syncCall
	fail  int // so many times
}

type syncCall struct {
	at       time.Duration
	full     bool
	changed  int
	services int
}

func (r *recorder) Sync(_ context.Context, table *service.Table, changed []service.Name) error {
	r.syncs = append(r.syncs, syncCall{time.Since(r.start), changed == nil, len(changed), len(table.Services)})
	if r.fail > 0 {
		r.fail--
		return errors.New("refused")
	}
	return nil
}

func (r *recorder) Close() error { return nil }

// running is a Loop under test, with fake time.
type running struct {
	*recorder
	changes chan service.Changes
	hosts   chan service.Host
	loop    *Loop
}

func runLoop(t *testing.T) *running {
	r := &running{
		recorder: &recorder{start: time.Now()}, changes: make(chan service.Changes), hosts: make(chan service.Host),
	}
	opts := service.Options{NodeName: "node-a"}
	r.loop = &Loop{
		Dataplane: r.recorder, Configure: opts.Config, NodeName: "node-a",
		MinSyncPeriod: time.Second, SyncPeriod: 30 * time.Second, Log: slog.New(slog.DiscardHandler),
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.loop.Run(ctx, r.changes, r.hosts); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func (r *running) last(t *testing.T) syncCall {
	t.Helper()
	if len(r.syncs) == 0 {
		t.Fatal("no sync")
	}
	return r.syncs[len(r.syncs)-1]
}

func one(i, endpoints int) service.Changes {
	svc, slice := synth.Service(i, endpoints)
	return service.Changes{Services: []*service.Service{svc}, EndpointSlices: []*service.EndpointSlice{slice}}
}

var anyHost = service.Host{Addresses: []netip.Addr{netip.MustParseAddr("192.168.77.11")}}

func TestNothingIsWrittenBeforeTheFirstCompleteList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runLoop(t)
		r.changes <- one(1, 1) // before the host, and not complete
		r.hosts <- anyHost
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(r.syncs) != 0 {
			t.Fatalf("synced %v", r.syncs)
		}
		r.changes <- synth.Cluster(3, 1)
		synctest.Wait()
		if got := r.last(t); !got.full || got.services != 3 {
			t.Errorf("first sync %+v, want a full one of 3 Services", got)
		}
	})
}

func TestFirstChangeIsAtOnceAndTheNextOnesAreJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runLoop(t)
		r.hosts <- anyHost
		r.changes <- synth.Cluster(3, 1)
		time.Sleep(5 * time.Second)
		before := time.Since(r.start)
		r.changes <- one(1, 2)
		synctest.Wait()
		if got := r.last(t); got.at != before || got.full || got.changed != 1 {
			t.Errorf("after a quiet time: %+v, want one Service at %v", got, before)
		}
		synctest.Wait()
		n := len(r.syncs)
		r.changes <- one(2, 2)
		r.changes <- one(1, 3)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := r.last(t); len(r.syncs) != n+1 || got.at != before+time.Second || got.changed != 2 {
			t.Errorf("two more: %+v in %d syncs, want both in one, a second after", got, len(r.syncs)-n)
		}
	})
}

func TestFailureBacksOffAndThenComparesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runLoop(t)
		r.hosts <- anyHost
		r.changes <- synth.Cluster(3, 1)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		n := len(r.syncs)
		r.fail = 4
		r.changes <- one(1, 2)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		after := r.syncs[n:]
		if len(after) != 5 || after[0].full {
			t.Fatalf("syncs %+v, want a partial one, then 4 full ones", after)
		}
		for i, want := range []time.Duration{time.Second, time.Second, 2 * time.Second, 4 * time.Second} {
			if got := after[i+1].at - after[i].at; got != want || !after[i+1].full {
				t.Errorf("retry %d came after %v, full %v; want a full one after %v", i, got, after[i+1].full, want)
			}
		}
	})
}

func TestKernelIsComparedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runLoop(t)
		r.hosts <- anyHost
		r.changes <- synth.Cluster(3, 1)
		time.Sleep(95 * time.Second)
		synctest.Wait()
		if len(r.syncs) != 4 {
			t.Errorf("%d syncs in 95 s, want the first and one each 30 s", len(r.syncs))
		}
		for _, s := range r.syncs {
			if !s.full {
				t.Errorf("%+v is not full", s)
			}
		}
	})
}

func TestNewFactsOfTheNodeAskForAFullSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := runLoop(t)
		r.hosts <- anyHost
		r.changes <- synth.Cluster(3, 1)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		n := len(r.syncs)
		r.changes <- service.Changes{Nodes: []*service.Node{{Name: "node-b", Zone: "z2"}}}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(r.syncs) != n {
			t.Error("another node's change caused a sync")
		}
		r.changes <- service.Changes{Nodes: []*service.Node{{Name: "node-a", Zone: "z1"}}}
		synctest.Wait()
		if got := r.last(t); len(r.syncs) != n+1 || !got.full {
			t.Errorf("own node changed: %+v", got)
		}
		r.hosts <- service.Host{Addresses: append(anyHost.Addresses, netip.MustParseAddr("192.168.77.99"))}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := r.last(t); len(r.syncs) != n+2 || !got.full {
			t.Errorf("own addresses changed: %+v", got)
		}
	})
}

// refuser is a recorder that leaves a Service out.
type refuser struct {
	*recorder
	refused map[service.Name]string
}

func (r *refuser) Refused() map[service.Name]string { return r.refused }

// A Service that is left out is told of once, by log, Event and report.
func TestServiceThatIsLeftOutIsToldOfOnce(t *testing.T) {
	bad := service.Name{Namespace: "tenant", Name: "bad"}
	var told []string
	var reported map[service.Name]string
	dp := &refuser{recorder: &recorder{}, refused: map[service.Name]string{bad: "it is too large"}}
	s := &loopState{Loop: &Loop{Dataplane: dp, Log: slog.New(slog.DiscardHandler), SyncPeriod: time.Second,
		Problem: func(name service.Name, p service.Problem) {
			told = append(told, name.String()+" "+p.Reason+": "+p.Message)
		},
		Synced: func(r Report) { reported = r.Refused }},
		resolver: service.NewResolver(synth.Config())}
	for range 3 {
		s.sync(t.Context())
	}
	if want := []string{"tenant/bad NotProgrammed: it is too large"}; !slices.Equal(told, want) || reported[bad] == "" {
		t.Errorf("told %q, reported %v, want %q", told, reported, want)
	}
	dp.refused = nil
	if s.sync(t.Context()); len(reported) != 0 {
		t.Errorf("reported %v after it was let in", reported)
	}
}
