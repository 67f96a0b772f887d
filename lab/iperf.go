package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// IPerfResult is what one iperf3 run has measured.
type IPerfResult struct {
	BitsPerSecond float64 // as the receiver counted
	Retransmits   int     // of TCP segments
	LostPercent   float64 // of UDP datagrams
}

// errBusy is what an iperf3 server says that has not seen its last run end yet.
var errBusy = errors.New("the server is busy running a test")

// busyPatience is how long IPerf waits for such a server.
const busyPatience = 10 * time.Second

// IPerf runs iperf3 in a place against a server, for a duration in whole
// seconds, with extra arguments such as "-R" or "-P4". A server takes one run
// at a time; one that is still busy with the last is waited for.
func (l *Lab) IPerf(ctx context.Context, place string, to netip.AddrPort, d time.Duration, extraArgs ...string) (IPerfResult, error) {
	for deadline := time.Now().Add(busyPatience); ; {
		result, err := l.iperf(ctx, place, to, d, extraArgs)
		if err == nil {
			return result, nil
		}
		if !errors.Is(err, errBusy) || time.Now().After(deadline) || ctx.Err() != nil {
			return IPerfResult{}, fmt.Errorf("run iperf3 from %s to %s: %w", place, to, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (l *Lab) iperf(ctx context.Context, place string, to netip.AddrPort, d time.Duration, extraArgs []string) (IPerfResult, error) {
	argv := append([]string{"iperf3", "-J", "-c", to.Addr().String(), "-p", fmt.Sprint(to.Port()),
		"-t", fmt.Sprint(int(d.Seconds())), "--connect-timeout", "3000"}, extraArgs...)
	output, runErr := l.Command(ctx, place, argv...).Output()
	var report struct {
		Error string
		End   struct {
			Sent     struct{ Retransmits int } `json:"sum_sent"`
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
			UDP *struct { // what was received, up to iperf3 3.12
				BitsPerSecond float64 `json:"bits_per_second"`
				LostPercent   float64 `json:"lost_percent"`
			} `json:"sum"`
		}
	}
	// iperf3 fails with a report that says why, so that is looked at first.
	err := json.Unmarshal(output, &report)
	switch {
	case strings.Contains(report.Error, errBusy.Error()):
		return IPerfResult{}, errBusy
	case report.Error != "":
		return IPerfResult{}, errors.New(report.Error)
	case runErr != nil:
		return IPerfResult{}, runErr
	case err != nil:
		return IPerfResult{}, fmt.Errorf("read its report: %w", err)
	}
	result := IPerfResult{BitsPerSecond: report.End.Received.BitsPerSecond, Retransmits: report.End.Sent.Retransmits}
	if udp := report.End.UDP; udp != nil {
		result.LostPercent = udp.LostPercent
		if result.BitsPerSecond == 0 {
			result.BitsPerSecond = udp.BitsPerSecond * (1 - udp.LostPercent/100)
		}
	}
	return result, nil
}
