package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// dialer is a process in a place that dials for this one.
type dialer struct {
	remote *echo.Remote
	cmd    *Cmd
}

// Dial dials from the place, in its network namespace and its cgroup, and
// returns the answer. Errors are those of [echo.Dial].
func (l *Lab) Dial(ctx context.Context, place string, network echo.Network, to netip.AddrPort) (echo.Answer, error) {
	remote, err := l.Dialer(place)
	if err != nil {
		return echo.Answer{}, err
	}
	return remote.Dial(ctx, echo.Request{Network: network, To: to})
}

// Dialer returns what dials from the place, in its network namespace and its
// cgroup. The process that does so is started at the first use and ends with
// this one, or with [Lab.Close].
func (l *Lab) Dialer(place string) (*echo.Remote, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d, ok := l.dialers[place]; ok {
		return d.remote, nil
	}
	cmd := l.Command(context.Background(), place, l.opts.Binary, "lab", "dialer")
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	if err := errors.Join(inErr, outErr); err != nil {
		return nil, fmt.Errorf("make pipes for the dialer in %s: %w", place, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if l.dialers == nil {
		l.dialers = map[string]*dialer{}
	}
	d := &dialer{remote: echo.NewRemote(in, out), cmd: cmd}
	l.dialers[place] = d
	return d.remote, nil
}

// Close ends the processes that dial for this one. The lab stays up.
func (l *Lab) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.dialers {
		_ = d.remote.Close()
		_ = d.cmd.Wait() // killed by another's Down, maybe: ended is ended
	}
	l.dialers = nil
}
