// Package load makes traffic and measures it, from within the place of a lab
// that its process was started in.
//
// Work goes through blocking system calls on threads of their own, not through
// the net package: what the poller and the scheduler of the runtime cost would
// stand beside every figure, and it is more than what a Service proxy costs.
package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Kind is a kind of work.
type Kind string

// The kinds of work. All are done against an echo server of the lab.
const (
	// Connect opens a TCP connection, reads the server's greeting and resets it.
	// Its latency is that of connect(2): a SYN and its answer.
	Connect Kind = "connect"
	// ConnectClose opens a TCP connection and reads until the server has closed,
	// which so is the one in TIME_WAIT. Its latency is that of connect(2).
	ConnectClose Kind = "connect-close"
	// Request sends one byte over an established TCP connection and waits for
	// the answer.
	Request Kind = "request"
	// Datagram opens a UDP socket, sends one datagram and waits for the answer,
	// as a resolver does.
	Datagram Kind = "datagram"
)

var kinds = []Kind{Connect, ConnectClose, Request, Datagram}

// Config says what work to do.
type Config struct {
	Kind     Kind
	To       netip.AddrPort
	Duration time.Duration
	// Workers is how many are at work at a time.
	Workers int
	// Rate is how many operations are to begin in each second, however long
	// they take (open loop). Of 0, each worker begins one as soon as the last
	// has ended (closed loop).
	Rate float64
	// Timeout is when an operation counts as failed.
	Timeout time.Duration
}

func (c Config) validate() error {
	switch {
	case !slices.Contains(kinds, c.Kind):
		return fmt.Errorf("unknown kind of load %q: use one of %v", c.Kind, kinds)
	case !c.To.IsValid():
		return errors.New("a load needs an address and a port to go to")
	case c.Workers < 1 || c.Workers > 1000:
		return fmt.Errorf("%d workers: use 1 to 1000", c.Workers)
	case c.Duration <= 0 || c.Timeout <= 0:
		return fmt.Errorf("load of %s with a timeout of %s: use more than 0", c.Duration, c.Timeout)
	case c.Rate < 0 || math.IsNaN(c.Rate):
		return fmt.Errorf("rate %g: use 0 for a closed loop, or more", c.Rate)
	}
	return nil
}

// Result is what a load has done.
type Result struct {
	Count    int           `json:"count"` // operations that succeeded
	Failures int           `json:"failures"`
	Elapsed  time.Duration `json:"elapsed"`
	// FirstError is the first failure's text.
	FirstError string `json:"first_error,omitempty"`
	// Gap is the longest time in which no operation succeeded.
	Gap time.Duration `json:"gap"`
	// Latency holds the time of each operation that succeeded, in nanoseconds,
	// as [EncodeHistogram] writes it. In an open loop it counts from when the
	// operation was meant to begin, so waiting behind a slow one counts too
	// (G. Tene, "How NOT to Measure Latency": coordinated omission).
	Latency string `json:"latency"`
	// CPU is what the whole machine spent in that time.
	CPU CPU `json:"cpu"`
}

// PerSecond is the rate of operations that succeeded.
func (r Result) PerSecond() float64 { return float64(r.Count) / r.Elapsed.Seconds() }

// NewHistogram returns a histogram of nanoseconds up to a minute, with three
// digits.
func NewHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, time.Minute.Nanoseconds(), 3)
}

// EncodeHistogram returns a histogram in HdrHistogram's own compressed format.
func EncodeHistogram(h *hdrhistogram.Histogram) (string, error) {
	data, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		return "", fmt.Errorf("encode histogram: %w", err)
	}
	return string(data), nil
}

// DecodeHistogram reads what [EncodeHistogram] has written.
func DecodeHistogram(text string) (*hdrhistogram.Histogram, error) {
	h, err := hdrhistogram.Decode([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("decode histogram: %w", err)
	}
	return h, nil
}

// worker is what one thread has done.
type worker struct {
	latency    *hdrhistogram.Histogram
	count      int
	failures   int
	firstError error
}

// Run works until the duration is over or ctx ends. That operations fail is
// counted and no error; that not one succeeded is.
func Run(ctx context.Context, c Config) (Result, error) {
	if err := c.validate(); err != nil {
		return Result{}, err
	}
	// Nothing is thrown away that would be worth a collection meanwhile.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(c.Workers+1, runtime.NumCPU())))
	before, err := ReadCPU()
	if err != nil {
		return Result{}, err
	}
	workers := make([]worker, c.Workers)
	for i := range workers {
		workers[i].latency = NewHistogram()
	}
	p := newPace(c.Rate, c.Duration)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() { workers[i].work(ctx, c, p) })
	}
	wg.Wait()
	elapsed := time.Since(p.start)
	after, err := ReadCPU()
	if err != nil {
		return Result{}, err
	}
	return summarize(workers, p, elapsed, after.Sub(before))
}

func summarize(workers []worker, p *pace, elapsed time.Duration, cpu CPU) (Result, error) {
	r := Result{Elapsed: elapsed, CPU: cpu, Gap: max(time.Duration(p.gap.Load()), elapsed-time.Duration(p.last.Load()))}
	all := NewHistogram()
	var first error
	for _, w := range workers {
		r.Count += w.count
		r.Failures += w.failures
		all.Merge(w.latency)
		if first == nil {
			first = w.firstError
		}
	}
	if first != nil {
		r.FirstError = first.Error()
	}
	if r.Count == 0 {
		return r, fmt.Errorf("not one operation succeeded: %w", errors.Join(first))
	}
	var err error
	r.Latency, err = EncodeHistogram(all)
	return r, err
}

func (w *worker) work(ctx context.Context, c Config, p *pace) {
	runtime.LockOSThread() // not unlocked: the thread, with its timer slack, ends with the goroutine
	preciseSleep()
	op, done := newOperation(c)
	defer done()
	for ctx.Err() == nil {
		begin, ok := p.next()
		if !ok {
			return
		}
		end, err := op()
		if err != nil {
			if w.firstError == nil {
				w.firstError = err
			}
			w.failures++
			if c.Rate == 0 {
				time.Sleep(time.Millisecond) // what is refused at once must not fill the CPU
			}
			continue
		}
		w.count++
		_ = w.latency.RecordValue(end.Sub(begin).Nanoseconds()) // a minute is more than any timeout
		p.succeeded(end)
	}
}

// pace says when operations begin, and how long none has succeeded.
type pace struct {
	start    time.Time
	duration time.Duration
	interval float64 // nanoseconds; 0 in a closed loop
	begun    atomic.Int64
	last     atomic.Int64 // when the last one succeeded, in nanoseconds from start
	gap      atomic.Int64
}

func newPace(rate float64, d time.Duration) *pace {
	p := &pace{start: time.Now(), duration: d}
	if rate > 0 {
		p.interval = 1e9 / rate
	}
	return p
}

// next waits until an operation is to begin and returns when that was meant to
// be, or false when the time is over.
func (p *pace) next() (time.Time, bool) {
	if p.interval == 0 {
		now := time.Now()
		return now, now.Sub(p.start) < p.duration
	}
	offset := time.Duration(float64(p.begun.Add(1)-1) * p.interval)
	if offset >= p.duration {
		return time.Time{}, false
	}
	begin := p.start.Add(offset)
	sleepUntil(begin)
	return begin, true
}

func (p *pace) succeeded(at time.Time) {
	now := at.Sub(p.start).Nanoseconds()
	last := p.last.Swap(now)
	for gap := p.gap.Load(); now-last > gap; gap = p.gap.Load() {
		if p.gap.CompareAndSwap(gap, now-last) {
			return
		}
	}
}
