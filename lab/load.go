package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"time"

	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// Load works from a place against an echo server, in a process of its own that
// is born in the place's cgroup, and returns the rate per second.
func (l *Lab) Load(ctx context.Context, place string, kind echo.LoadKind, to netip.AddrPort, d time.Duration) (float64, error) {
	out, err := l.Command(ctx, place, l.opts.Binary, "lab", "load", "--kind", string(kind), "--to", to.String(), "--duration", d.String()).Output()
	var result echo.LoadResult
	if err == nil {
		err = json.Unmarshal(out, &result)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return 0, fmt.Errorf("load from %s: %w", place, err)
	}
	return result.PerSecond(), nil
}
