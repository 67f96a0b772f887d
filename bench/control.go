package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nodeproxy/nodeproxy/bench/load"
	"github.com/nodeproxy/nodeproxy/lab"
)

const (
	churnRate       = 100 // changes a second
	restartDuration = 8 * time.Second
)

// control does the work of a control step.
func (s *site) control(ctx context.Context, step Step) (out Sample, err error) {
	if err := s.pauseAPI(false); err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.pauseAPI(true)) }()
	switch step.Work {
	case WorkStart:
		return s.restartCold(ctx, step.Key)
	case WorkChange:
		return s.measureChanges(ctx, step.Key)
	case WorkChurn:
		return s.measureChurn(ctx, step.Key)
	}
	return s.measureRestart(ctx, step.Key)
}

// startAll starts the agents, first that of node-a alone, which is measured:
// a node has one agent, and these CPUs to itself.
func (s *site) startAll(ctx context.Context, k Key) (Sample, error) {
	out := Sample{Key: k, Unit: "s"}
	p, err := s.probe(ctx, "pod-a1", changingAddr, 10*time.Millisecond)
	if err != nil {
		return out, err
	}
	defer p.stop()
	begin := time.Now()
	if err := s.start(ctx, "node-a"); err != nil {
		return out, err
	}
	synced := time.Since(begin)
	at, err := p.await(ctx, startPatience, "pod-b1")
	if err != nil {
		return out, fmt.Errorf("start on node-a: %w", err)
	}
	out.Value = at.Sub(begin).Seconds()
	if out.Agent, err = s.agentUsage(); err != nil {
		return out, err
	}
	if !isKubeProxy(s.column) { // which does not tell
		out.Agent.Synced = synced.Seconds()
	}
	if err := s.start(ctx, "node-b"); err != nil {
		return out, err
	}
	return out, s.forgetProbes()
}

// forgetProbes removes the conntrack entries of what was probed while there were
// no rules. They are not translated, and a connection that gets the port of one
// within two minutes would fail with it, in every mode.
func (s *site) forgetProbes() error {
	for _, node := range lab.PlacesOf(lab.Node) {
		err := s.Do(node.Name, func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
		if err != nil {
			return fmt.Errorf("flush conntrack on %s: %w", node.Name, err)
		}
	}
	return nil
}

// restartCold starts the agents once more, with nothing left of the start
// before.
func (s *site) restartCold(ctx context.Context, k Key) (Sample, error) {
	for _, node := range []string{"node-a", "node-b"} {
		if err := s.cleanUp(ctx, node); err != nil {
			return Sample{}, err
		}
	}
	if err := s.change(-1, "pod-b1"); err != nil {
		return Sample{}, err
	}
	return s.startAll(ctx, k)
}

// measureChanges moves a Service from one Pod to the other and back, and
// measures from the moment before each write to the first connection that the
// new one answers.
func (s *site) measureChanges(ctx context.Context, k Key) (Sample, error) {
	out := Sample{Key: k, Unit: "s"}
	p, err := s.probe(ctx, "pod-a1", changingAddr, operationTimeout)
	if err != nil {
		return out, err
	}
	defer p.stop()
	// A first change that is not measured: the agent may have lost its API server.
	for _, pod := range []string{"pod-b2", "pod-b1"} {
		if err := s.change(-1, pod); err != nil {
			return out, err
		}
		if _, err := p.await(ctx, startPatience, pod); err != nil {
			return out, err
		}
	}
	before, err := s.agentUsage()
	if err != nil {
		return out, err
	}
	latency := load.NewHistogram()
	rest := 300 * time.Millisecond
	for i := range s.opts.Changes {
		// Not in step with any period of an agent.
		if err := sleep(ctx, rest+rand.N(100*time.Millisecond)); err != nil {
			return out, err
		}
		pod := [2]string{"pod-b2", "pod-b1"}[i%2]
		begin := time.Now()
		if err := s.change(-1, pod); err != nil {
			return out, err
		}
		at, err := p.await(ctx, time.Minute, pod)
		if err != nil {
			return out, fmt.Errorf("change %d: %w", i, err)
		}
		took := at.Sub(begin)
		_ = latency.RecordValue(took.Nanoseconds()) // at most the minute that it is waited for
		rest = max(rest, took)
	}
	after, err := s.agentUsage()
	if err != nil {
		return out, err
	}
	out.Agent = after
	out.Agent.CPU = (after.CPU - before.CPU) / float64(s.opts.Changes)
	out.Value, out.Amount = float64(latency.ValueAtQuantile(50))/1e9, float64(s.opts.Changes)
	out.Latency, err = load.EncodeHistogram(latency)
	return out, err
}

// measureChurn changes Services, the one that is used too, while connections
// are opened to it at a fixed rate. Every endpoint that it ever has is alive,
// so none may fail.
func (s *site) measureChurn(ctx context.Context, k Key) (Sample, error) {
	before, err := s.agentUsage()
	if err != nil {
		return Sample{}, err
	}
	stop := make(chan struct{})
	var changeErr error
	var changes int
	var wg sync.WaitGroup
	wg.Go(func() { changes, changeErr = s.churnUntil(stop) })
	out, err := s.loadChanging(ctx, k, s.opts.ChurnDuration)
	close(stop)
	wg.Wait()
	if err := errors.Join(err, changeErr); err != nil {
		return out, err
	}
	after, err := s.agentUsage()
	if err != nil {
		return out, err
	}
	out.Agent = after
	out.Agent.CPU = after.CPU - before.CPU
	out.Amount = float64(changes)
	h, err := load.DecodeHistogram(out.Latency)
	if err != nil {
		return out, err
	}
	out.Value, out.Unit = float64(h.ValueAtQuantile(99))/1e9, "s"
	return out, sleep(ctx, time.Second) // until the agent has written the last of them
}

func (s *site) churnUntil(stop <-chan struct{}) (changes int, err error) {
	ticker := time.NewTicker(time.Second / churnRate)
	defer ticker.Stop()
	sets := [][]string{{"pod-b1"}, {"pod-b1", "pod-b2"}, {"pod-b2"}}
	for i := 0; ; i++ {
		select {
		case <-stop:
			return i, s.change(-1, "pod-b1")
		case <-ticker.C:
		}
		if i%10 == 0 {
			err = s.change(-1, sets[i/10%len(sets)]...)
		} else {
			err = s.churn(i%churned, i)
		}
		if err != nil {
			return i, fmt.Errorf("change %d: %w", i, err)
		}
	}
}

// measureRestart kills the agent of node-a under load and starts it again. The
// figure is the longest time in which no connection came about.
func (s *site) measureRestart(ctx context.Context, k Key) (Sample, error) {
	var restartErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		if restartErr = sleep(ctx, time.Second); restartErr != nil {
			return
		}
		if restartErr = s.Kill(s.agentProcess("node-a")); restartErr == nil {
			restartErr = s.start(ctx, "node-a")
		}
	})
	// kube-proxy does not say when it is done; 2.6 to 3.4 s were seen beside
	// 1,000 Services.
	out, err := s.loadChanging(ctx, k, restartDuration+5*time.Duration(k.Services)*time.Millisecond)
	wg.Wait()
	if err := errors.Join(err, restartErr); err != nil {
		return out, err
	}
	out.Value, out.Unit = out.Gap, "s"
	out.Agent, err = s.agentUsage()
	return out, err
}

func (s *site) loadChanging(ctx context.Context, k Key, d time.Duration) (Sample, error) {
	r, _, err := s.load(ctx, "pod-a1", load.Config{Kind: load.Connect, To: changingAddr, Duration: d,
		Workers: 32, Rate: s.opts.Rate, Timeout: operationTimeout})
	return loadSample(k, r), err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// prober is a process that says who answers; see [load.Probe].
type prober struct {
	cancel    context.CancelFunc
	sightings chan load.Sighting
	wait      func() error
}

func (s *site) probe(ctx context.Context, from string, to netip.AddrPort, timeout time.Duration) (*prober, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := s.Command(ctx, from, s.Options().Binary, "bench", "probe", "--to", to.String(), "--timeout", timeout.String())
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("probe %s from %s: %w", to, from, err)
	}
	p := &prober{cancel, make(chan load.Sighting, 1000), cmd.Wait}
	go p.read(out)
	return p, nil
}

func (p *prober) read(out io.Reader) {
	defer close(p.sightings)
	lines := json.NewDecoder(out)
	for {
		var s load.Sighting
		if err := lines.Decode(&s); err != nil {
			return // it has ended
		}
		p.sightings <- s
	}
}

// await waits until a server answers and returns when it first did.
func (p *prober) await(ctx context.Context, patience time.Duration, name string) (time.Time, error) {
	timeout := time.After(patience)
	for {
		select {
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		case <-timeout:
			return time.Time{}, fmt.Errorf("%s did not answer within %s", name, patience)
		case s, ok := <-p.sightings:
			if !ok {
				return time.Time{}, errors.New("the probe has ended")
			}
			if s.Name == name {
				return time.Unix(0, s.At), nil
			}
		}
	}
}

func (p *prober) stop() {
	p.cancel()
	_ = p.wait() // it was killed
}
