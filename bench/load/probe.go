package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Sighting tells that a probe found something else than before.
type Sighting struct {
	// At is when the operation began that found it, in nanoseconds since 1970.
	At int64 `json:"at"`
	// Name is the server that answered, empty if none did.
	Name string `json:"name"`
	// Gap is how long the operation before took with the pause after it: the
	// change was no longer ago than that.
	Gap time.Duration `json:"gap"`
}

// Probe asks a server over TCP again and again, as fast as it answers, and
// writes a [Sighting] as a line of JSON to out whenever another one answers
// than before, until ctx ends.
func Probe(ctx context.Context, to netip.AddrPort, timeout time.Duration, out io.Writer) error {
	runtime.LockOSThread()
	preciseSleep()
	d := newDialer(to, timeout)
	lines := json.NewEncoder(out)
	last, lastAt := "", time.Now()
	for ctx.Err() == nil {
		at := time.Now()
		name := d.who()
		if name != last {
			if err := lines.Encode(Sighting{at.UnixNano(), name, at.Sub(lastAt)}); err != nil {
				return fmt.Errorf("report what %s answers: %w", to, err)
			}
		}
		last, lastAt = name, at
		if name == "" {
			sleepUntil(time.Now().Add(500 * time.Microsecond))
		} else {
			// An answer is worth a rest: the agent that is waited for may have
			// but this one CPU.
			sleepUntil(time.Now().Add(200 * time.Microsecond))
		}
	}
	return nil
}

// who returns the name that a server greets with, empty if none does.
func (d *dialer) who() string {
	fd, err := d.open(unix.SOCK_STREAM)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	greeting, err := d.read(fd)
	if err != nil {
		return ""
	}
	name, _, _ := bytes.Cut(greeting, []byte(" "))
	return string(name)
}
