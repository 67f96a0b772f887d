package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nodeproxy/nodeproxy/bench/load"
)

// bitRate is a rate as iperf takes it: 500M.
var bitRate = regexp.MustCompile(`^[0-9]+[KMG]?$`)

// operationTimeout is when an operation of a load counts as failed. It leaves
// room for no retransmission: a lab loses no packet by itself.
const operationTimeout = 900 * time.Millisecond

// measure does the work of a data step.
func (s *site) measure(ctx context.Context, k Key) (Sample, error) {
	from, to := target(k)
	if isIPerf(k.Work) {
		return s.measureIPerf(ctx, k, from, to)
	}
	c := load.Config{Kind: load.Connect, To: to, Duration: s.opts.Slot, Workers: 1, Timeout: operationTimeout}
	switch k.Work {
	case WorkConnect8:
		c.Workers = 8
	case WorkOpen:
		c.Workers, c.Rate = 32, s.opts.Rate
	case WorkClose:
		c.Kind, c.Workers, c.Rate = load.ConnectClose, 32, s.opts.Rate
	case WorkRequest:
		c.Kind = load.Request
	case WorkDatagram:
		c.Kind = load.Datagram
	}
	r, instructions, err := s.load(ctx, from, c)
	if err != nil {
		return Sample{}, err
	}
	out := loadSample(k, r)
	out.Instructions = instructions
	out.Rank = s.ranks[used{k.Endpoints, k.Position}]
	return out, nil
}

func loadSample(k Key, r load.Result) Sample {
	return Sample{
		Key: k, Value: r.PerSecond(), Unit: "/s", Failures: r.Failures, FirstError: r.FirstError, Gap: r.Gap.Seconds(),
		Latency: r.Latency, CPU: r.CPU, Amount: float64(r.Count),
	}
}

// load runs a load in a process that is born in the place.
func (s *site) load(ctx context.Context, from string, c load.Config) (r load.Result, instructions uint64, err error) {
	cmd := s.Command(ctx, from, s.Options().Binary, "bench", "load", "--kind", string(c.Kind), "--to", c.To.String(),
		"--duration", c.Duration.String(), "--workers", fmt.Sprint(c.Workers), "--rate", fmt.Sprint(c.Rate), "--timeout", c.Timeout.String())
	counters := openCounters()
	out, err := cmd.Output()
	instructions = counters.read()
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		err = errors.New(strings.TrimPrefix(tail(exit.Stderr), "nodeproxy: "))
	}
	if err != nil {
		return r, 0, fmt.Errorf("load from %s to %s: %w", from, c.To, err)
	}
	return r, instructions, nil
}

func (s *site) measureIPerf(ctx context.Context, k Key, from string, to netip.AddrPort) (Sample, error) {
	out := Sample{Key: k, Unit: "bit/s"}
	d := max(s.opts.Slot.Truncate(time.Second), time.Second)
	before, err := load.ReadCPU()
	if err != nil {
		return out, err
	}
	var bits float64
	if k.Work == WorkIPerf2 {
		out.Value, err = s.iperf2(ctx, from, to, d)
		bits = out.Value
	} else {
		rate, udp := strings.CutPrefix(k.Work, WorkUDP)
		args := []string{"-P", "1"}
		switch {
		case k.Work == WorkTCP8:
			args = []string{"-P", "8"}
		case udp:
			args = []string{"-u", "-b", rate, "-l", "1400"}
		}
		r, ierr := s.IPerf(ctx, from, to, d, args...)
		err, bits, out.Value = ierr, r.BitsPerSecond, r.BitsPerSecond
		if udp {
			out.Value, out.Unit = r.LostPercent, "%"
		}
	}
	if err == nil && bits == 0 {
		err = fmt.Errorf("iperf from %s to %s: nothing came through", from, to)
	}
	if err != nil {
		return out, err
	}
	after, err := load.ReadCPU()
	out.CPU, out.Amount = after.Sub(before), bits/8*d.Seconds()
	return out, err
}

// iperf2 returns bit/s.
func (s *site) iperf2(ctx context.Context, from string, to netip.AddrPort, d time.Duration) (float64, error) {
	argv := []string{"iperf", "-c", to.Addr().String(), "-p", fmt.Sprint(to.Port()), "-t", fmt.Sprint(int(d.Seconds())), "-y", "C"}
	if to.Addr().Is6() {
		argv = append(argv, "-V")
	}
	out, err := s.Command(ctx, from, argv...).Output()
	if err != nil {
		return 0, fmt.Errorf("run iperf from %s to %s: %w", from, to, err)
	}
	return parseIPerf2(string(out))
}

// parseIPerf2 reads the last field of the last line of a report as
// comma-separated values, which is bit/s.
func parseIPerf2(out string) (float64, error) {
	fields := strings.Split(tail([]byte(out)), ",")
	rate, err := strconv.ParseFloat(strings.TrimSpace(fields[len(fields)-1]), 64)
	if err != nil {
		return 0, fmt.Errorf("read the report of iperf: %w", err)
	}
	return rate, nil
}
