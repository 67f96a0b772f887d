package load

import (
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serve answers on loopback as an echo server of the lab does, each connection
// after a delay.
func serve(t *testing.T, delay func(n int64) time.Duration) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var n atomic.Int64
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				time.Sleep(delay(n.Add(1)))
				buf := []byte("server 1.2.3.4:5\n")
				for err = nil; err == nil; {
					if _, err = conn.Write(buf); err == nil {
						_, err = conn.Read(buf)
					}
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func never(int64) time.Duration { return 0 }

func TestClosedLoop(t *testing.T) {
	to := serve(t, never)
	for _, kind := range []Kind{Connect, Request} {
		r, err := Run(t.Context(), Config{Kind: kind, To: to, Duration: 200 * time.Millisecond, Workers: 2, Timeout: time.Second})
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		h, err := DecodeHistogram(r.Latency)
		if err != nil {
			t.Fatal(err)
		}
		if r.Failures > 0 || r.Count < 10 || h.TotalCount() != int64(r.Count) || r.Elapsed < 200*time.Millisecond {
			t.Errorf("%s: %+v, %d latencies", kind, r, h.TotalCount())
		}
	}
}

// A server that stands still makes all wait that were to begin meanwhile: the
// latencies must say so, though few operations were under way.
func TestOpenLoopCountsFromTheIntendedStart(t *testing.T) {
	var calls int
	d := 300 * time.Millisecond
	p := newPace(100, d)
	w := worker{latency: NewHistogram()}
	for {
		begin, ok := p.next()
		if !ok {
			break
		}
		if calls++; calls == 5 {
			time.Sleep(200 * time.Millisecond) // one operation is slow
		}
		if err := w.latency.RecordValue(time.Since(begin).Nanoseconds()); err != nil {
			t.Fatal(err)
		}
	}
	if calls != 30 {
		t.Errorf("%d operations began, want 30", calls)
	}
	// Some 20 of 30 were to begin while the one was slow.
	if p50 := time.Duration(w.latency.ValueAtQuantile(50)); p50 < 20*time.Millisecond {
		t.Errorf("the median is %s, as if none had waited", p50)
	}
}

func TestGapIsTheLongestTimeWithoutSuccess(t *testing.T) {
	p := newPace(0, time.Second)
	for _, ms := range []int{1, 2, 30, 31} {
		p.succeeded(p.start.Add(time.Duration(ms) * time.Millisecond))
	}
	r, err := summarize([]worker{{latency: NewHistogram(), count: 4}}, p, 40*time.Millisecond, CPU{})
	if err != nil || r.Gap != 28*time.Millisecond {
		t.Errorf("gap %s, %v, want 28ms", r.Gap, err)
	}
	if r, _ := summarize([]worker{{latency: NewHistogram(), count: 4}}, p, 90*time.Millisecond, CPU{}); r.Gap != 59*time.Millisecond {
		t.Errorf("gap at the end %s, want 59ms", r.Gap)
	}
}

func TestFailuresAreCounted(t *testing.T) {
	to := serve(t, func(n int64) time.Duration {
		if n == 3 {
			return time.Second
		}
		return 0
	})
	r, err := Run(t.Context(), Config{Kind: Connect, To: to, Duration: 300 * time.Millisecond, Workers: 1, Timeout: 50 * time.Millisecond})
	if err != nil || r.Failures != 1 || !strings.Contains(r.FirstError, "timeout") {
		t.Errorf("%+v, %v", r, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	_, err = Run(t.Context(), Config{Kind: Connect, To: closed, Duration: 50 * time.Millisecond, Workers: 1, Timeout: time.Second})
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens, but %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Kind: Connect, To: netip.MustParseAddrPort("127.0.0.1:1"), Duration: 1, Workers: 1, Timeout: 1}
	for _, change := range []func(*Config){
		func(c *Config) { c.Kind = "x" }, func(c *Config) { c.To = netip.AddrPort{} }, func(c *Config) { c.Workers = 0 },
		func(c *Config) { c.Duration = 0 }, func(c *Config) { c.Rate = -1 },
	} {
		c := good
		change(&c)
		if _, err := Run(t.Context(), c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

func TestParseCPU(t *testing.T) {
	c, err := parseCPU("cpu  100 10 30 1000 5 1 2 7 0 0\ncpu0 1 1\n")
	want := CPU{User: 1100 * time.Millisecond, System: 300 * time.Millisecond, SoftIRQ: 30 * time.Millisecond, Steal: 70 * time.Millisecond}
	if err != nil || c != want || c.Busy() != 1430*time.Millisecond {
		t.Errorf("got %+v, %v", c, err)
	}
	if _, err := parseCPU("intr 5"); err == nil {
		t.Error("no error")
	}
}

// The client of a server that closes first is not the one in TIME_WAIT; of one that
// does not close, it fails.
func TestConnectCloseWaitsForTheServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write(greeting) // the client sees what is missing
			conn.Close()
		}
	}()
	c := Config{Kind: ConnectClose, To: l.Addr().(*net.TCPAddr).AddrPort(), Duration: 200 * time.Millisecond, Workers: 2, Rate: 200, Timeout: time.Second}
	if r, err := Run(t.Context(), c); err != nil || r.Failures > 0 || r.Count < 20 {
		t.Errorf("%+v, %v", r, err)
	}
	c.To, c.Timeout = serve(t, never), 50*time.Millisecond
	if r, err := Run(t.Context(), c); err == nil || r.Failures == 0 {
		t.Errorf("from a server that does not close: %+v, %v", r, err)
	}
}
