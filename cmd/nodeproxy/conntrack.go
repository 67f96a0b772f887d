package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// sysctl is a value below /proc/sys/net/netfilter.
type sysctl struct {
	name    string
	value   int
	atLeast bool // a larger value stays
}

// sysctls returns what is to be set on a machine with that many CPUs.
func (o *conntrackOptions) sysctls(cpus int) []sysctl {
	var out []sysctl
	if o.maxPerCore > 0 {
		out = append(out, sysctl{"nf_conntrack_max", max(o.maxPerCore*cpus, o.min), true})
	}
	for name, d := range map[string]time.Duration{
		"nf_conntrack_tcp_timeout_established": o.tcpEstablished, "nf_conntrack_tcp_timeout_close_wait": o.tcpCloseWait,
		"nf_conntrack_udp_timeout": o.udp, "nf_conntrack_udp_timeout_stream": o.udpStream,
	} {
		if d > 0 {
			out = append(out, sysctl{name, int(d / time.Second), false})
		}
	}
	if o.tcpBeLiberal {
		out = append(out, sysctl{"nf_conntrack_tcp_be_liberal", 1, false})
	}
	return out
}

// conntrackPoll is how often sysctls are looked for that are not there yet.
const conntrackPoll = 30 * time.Second

// follow sets the sysctls that were missing as soon as conntrack is there: in ebpf
// mode nothing at the start needs its module. It returns when ctx ends or none is
// missing.
func (o *conntrackOptions) follow(ctx context.Context, dir string, missing bool, log *slog.Logger) {
	tick := time.NewTicker(conntrackPoll)
	defer tick.Stop()
	for missing {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := os.Stat(filepath.Join(dir, "nf_conntrack_max")); err == nil {
			missing = o.set(dir, log)
		}
	}
}

// set writes the sysctls. What cannot be written is told in the log and
// stays: translation works without. Without conntrack there is nothing to set
// yet, which it reports.
func (o *conntrackOptions) set(dir string, log *slog.Logger) (missing bool) {
	for _, s := range o.sysctls(runtime.NumCPU()) {
		err := s.set(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = true
		case errors.Is(err, fs.ErrPermission) && s.name == "nf_conntrack_max":
			// Only the machine's first network namespace may.
			log.Debug("sysctl is the host's to set", "error", err)
		case err != nil:
			log.Warn("sysctl stays as it is", "error", err)
		}
	}
	return missing
}

const conntrackSysctls = "/proc/sys/net/netfilter"

func (s sysctl) set(dir string) error {
	path := filepath.Join(dir, s.name)
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read sysctl: %w", err)
	}
	now, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil && (now == s.value || s.atLeast && now > s.value) {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(s.value)), 0); err != nil {
		return fmt.Errorf("set sysctl to %d: %w", s.value, err)
	}
	return nil
}

// setOOMScore tells the kernel how readily to kill this process.
func setOOMScore(score int) error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(score)), 0); err != nil {
		return fmt.Errorf("set oom_score_adj to %d: %w", score, err)
	}
	return nil
}
