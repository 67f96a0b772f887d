package bench

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// usage reads what a process has used since it began, from /proc.
func usage(pid int) (Usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, fmt.Errorf("read usage of process %d: %w", pid, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Usage{}, fmt.Errorf("read usage of process %d: %w", pid, err)
	}
	u, err := parseUsage(string(stat), string(status))
	if err != nil {
		return u, fmt.Errorf("read usage of process %d: %w", pid, err)
	}
	return u, nil
}

// parseUsage reads /proc/PID/stat and status, see proc(5).
func parseUsage(stat, status string) (u Usage, err error) {
	// The command's name, in brackets, may hold anything; what follows begins
	// with field 3. Fields 14 to 17 are user and system time, and those of
	// children that were waited for.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 15 {
		return u, fmt.Errorf("unexpected line %q", stat)
	}
	for _, f := range fields[11:15] {
		ticks, err := strconv.ParseUint(f, 10, 63)
		if err != nil {
			return u, fmt.Errorf("unexpected line %q: %w", stat, err)
		}
		u.CPU += float64(ticks) / 100 // USER_HZ
	}
	lines := bufio.NewScanner(strings.NewReader(status))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || fields[2] != "kB" {
			continue
		}
		kB, err := strconv.ParseInt(fields[1], 10, 64)
		switch {
		case err != nil:
		case fields[0] == "VmRSS:":
			u.RSS = kB << 10
		case fields[0] == "VmHWM:":
			u.PeakRSS = kB << 10
		}
	}
	return u, nil
}
