package dataplane

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// Loop drives one [Dataplane]: it joins what changes into a Table, waits as
// long as the rate limit says, and syncs. Its fields must be set before Run and
// not changed afterwards.
type Loop struct {
	Dataplane Dataplane
	// Configure works out the node's configuration from its own object, nil
	// while there is none, and what the kernel says of the machine.
	Configure func(node *service.Node, host service.Host) (service.Config, error)
	NodeName  string
	// MinSyncPeriod is the least time from the end of a sync to the start of
	// the next.
	MinSyncPeriod time.Duration
	// SyncPeriod is how often the kernel is compared with the Table, and the
	// longest wait before a failed sync is tried again.
	SyncPeriod time.Duration
	Log        *slog.Logger
	// Applied, if set, is called with each batch of changes that the next sync
	// will take in, from Run's goroutine.
	Applied func(service.Changes)
	// Inspect, if set, delivers functions that are to see the Table; they run
	// on Run's goroutine between two syncs, and must not change it. The Table is
	// nil before the host is known.
	Inspect <-chan func(*service.Table)
	// Repair, if set, delivers functions that are to be told how a full sync
	// went which begins after they came; they run on Run's goroutine.
	Repair <-chan func(error)
	// Queued, if set, is called when something has to be synced, from Run's
	// goroutine.
	Queued func()
	// Syncing, if set, is called before each sync, from Run's goroutine.
	Syncing func()
	// Synced, if set, is called after each sync, from Run's goroutine.
	Synced func(Report)
	// Problem, if set, is told once of each part of a Service that is not
	// served, from Run's goroutine.
	Problem func(service.Name, service.Problem)
}

// Report says how a sync went.
type Report struct {
	Err      error
	Full     bool
	Changed  int            // Services, of a partial sync
	Services []service.Name // those Services
	Duration time.Duration
	Table    *service.Table // valid during the call
	// Refused are the Services that the mode left out, and why; see [Refuser].
	Refused map[service.Name]string
}

// firstBackoff is the wait after a first failure; it doubles with each more.
const firstBackoff = 500 * time.Millisecond

// Run works until ctx ends and returns nil then. changes delivers what a source
// says, hosts what the kernel says of the machine whenever that changes.
// Nothing is written before both have come, and the changes were complete: what
// an earlier run left in the kernel works until then.
func (l *Loop) Run(ctx context.Context, changes <-chan service.Changes, hosts <-chan service.Host) error {
	s := &loopState{Loop: l, full: true}
	period := time.NewTicker(l.SyncPeriod)
	defer period.Stop()
	for {
		var due <-chan time.Time
		if s.ready() && s.pending() {
			if s.Queued != nil {
				s.Queued()
			}
			due = time.After(time.Until(s.notBefore))
		}
		select {
		case <-ctx.Done():
			return nil
		case c := <-changes:
			s.apply(c)
		case h := <-hosts:
			s.setHost(h)
		case fn := <-l.Inspect:
			s.inspect(fn)
		case told := <-l.Repair:
			s.full, s.repairs, s.notBefore = true, append(s.repairs, told), time.Now()
		case <-period.C:
			s.full = true
		case <-due:
			// What came meanwhile belongs to the same sync.
			s.drain(changes)
			s.sync(ctx)
		}
	}
}

// loopState is what Run keeps between syncs.
type loopState struct {
	*Loop
	resolver  *service.Resolver
	waiting   []service.Changes // came before the host
	host      service.Host
	complete  bool                      // a complete list was seen
	full      bool                      // the next sync is a full one
	changed   map[service.Name]struct{} // since the last successful sync
	notBefore time.Time
	backoff   time.Duration
	repairs   []func(error)                      // want to know how the next sync went
	problems  map[service.Name][]service.Problem // those reported
	refused   map[service.Name]string            // at the last sync
}

func (s *loopState) inspect(fn func(*service.Table)) {
	if s.resolver == nil {
		fn(nil)
		return
	}
	fn(s.resolver.Table())
}

func (s *loopState) ready() bool { return s.resolver != nil && s.complete }

func (s *loopState) pending() bool { return s.full || len(s.changed) > 0 }

func (s *loopState) drain(changes <-chan service.Changes) {
	for {
		select {
		case c := <-changes:
			s.apply(c)
		default:
			return
		}
	}
}

func (s *loopState) apply(c service.Changes) {
	if s.resolver == nil {
		s.waiting = append(s.waiting, c)
		return
	}
	s.complete = s.complete || c.Complete
	if s.Applied != nil {
		s.Applied(c)
	}
	changed, nodes := s.resolver.Apply(c)
	for _, name := range changed {
		if s.changed == nil {
			s.changed = map[service.Name]struct{}{}
		}
		s.changed[name] = struct{}{}
	}
	if _, ours := nodes[s.NodeName]; ours {
		s.reconfigure()
	}
}

func (s *loopState) setHost(h service.Host) {
	s.host = h
	if s.resolver == nil {
		cfg, err := s.Configure(nil, h)
		if err != nil {
			s.Log.Error("node cannot be configured", "error", err)
			return
		}
		s.resolver = service.NewResolver(cfg)
		for _, c := range s.waiting {
			s.apply(c)
		}
		s.waiting = nil
		return
	}
	s.reconfigure()
}

func (s *loopState) reconfigure() {
	cfg, err := s.Configure(s.resolver.State().Node(s.NodeName), s.host)
	if err != nil { // the last good configuration stays
		s.Log.Error("node cannot be configured", "error", err)
		return
	}
	if s.resolver.SetConfig(cfg) {
		s.full = true
	}
}

func (s *loopState) sync(ctx context.Context) {
	var changed []service.Name
	if !s.full {
		for name := range s.changed {
			changed = append(changed, name)
		}
		slices.SortFunc(changed, service.Name.Compare)
	}
	table := s.resolver.Table()
	s.reportProblems(table)
	if s.Syncing != nil {
		s.Syncing()
	}
	start := time.Now()
	err := s.Dataplane.Sync(ctx, table, changed)
	took := time.Since(start)
	if err != nil {
		s.full = true
		s.backoff = min(max(2*s.backoff, firstBackoff), s.SyncPeriod)
		s.notBefore = time.Now().Add(max(s.backoff, s.MinSyncPeriod))
		if ctx.Err() == nil {
			s.Log.Error("sync failed", "error", err, "retry", s.backoff)
		}
	} else {
		s.Log.Debug("sync done", "full", s.full, "changed", len(changed), "duration", took)
		s.changed, s.backoff = nil, 0
		s.notBefore = time.Now().Add(s.MinSyncPeriod)
	}
	s.reportRefused(refusedBy(s.Dataplane))
	if s.Synced != nil {
		s.Synced(Report{Err: err, Full: changed == nil, Changed: len(changed), Services: changed, Duration: took, Table: table, Refused: s.refused})
	}
	if err == nil {
		s.full = false
	}
	for _, told := range s.repairs {
		told(err)
	}
	s.repairs = nil
}

// reportProblems logs what of a Service is not served, once for each.
func (s *loopState) reportProblems(table *service.Table) {
	if s.problems == nil {
		s.problems = map[service.Name][]service.Problem{}
	}
	for name, res := range table.Services {
		if slices.Equal(s.problems[name], res.Problems) {
			continue
		}
		for _, p := range res.Problems {
			if !slices.Contains(s.problems[name], p) {
				s.Log.Warn("part of a Service is not served", "service", name.String(), "reason", p.Reason, "problem", p.Message)
				if s.Problem != nil {
					s.Problem(name, p)
				}
			}
		}
		if len(res.Problems) == 0 {
			delete(s.problems, name)
		} else {
			s.problems[name] = res.Problems
		}
	}
}
