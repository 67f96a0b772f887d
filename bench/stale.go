package bench

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/nodeproxy/nodeproxy/lab"
)

// labPrefix begins the names of runs' labs; the process's ID follows.
const labPrefix = "bench-"

// LabName is the name that the calling process's labs begin with.
func LabName() string { return fmt.Sprintf("%s%d", labPrefix, os.Getpid()) }

// RemoveStale takes down the labs of runs that were killed, and returns their
// names.
func RemoveStale() ([]string, error) {
	names, err := lab.List()
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, name := range stale(names, func(pid string) bool {
		_, err := os.Stat("/proc/" + pid)
		return err == nil
	}) {
		if downErr := lab.Down(name); downErr != nil && !errors.Is(downErr, lab.ErrNotFound) {
			err = errors.Join(err, downErr)
			continue
		}
		removed = append(removed, name)
	}
	return removed, err
}

// stale returns the labs of runs whose process is gone.
func stale(names []string, running func(pid string) bool) []string {
	var out []string
	for _, name := range names {
		rest, ok := strings.CutPrefix(name, labPrefix)
		pid, _, numbered := strings.Cut(rest, "-")
		if ok && numbered && !running(pid) {
			out = append(out, name)
		}
	}
	return out
}
