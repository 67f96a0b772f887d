package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

// stopTimeout bounds how long a process may take to end after SIGTERM.
const stopTimeout = 15 * time.Second

// Process is a process that [Lab.Start] has started.
type Process struct {
	Name  string
	Place string
	Argv  []string
	PID   int
	// Born is when it was started, in clock ticks since boot: together with
	// the PID it means this process and no later one.
	Born uint64
	// LogFrom is the offset, in bytes, at which its output begins in the log.
	LogFrom int64
}

// Start starts a process in the place that outlives this one: a session of
// its own, standard input from /dev/null, output appended to [Lab.LogPath] of
// the name. At most one process of a name can run at a time.
func (l *Lab) Start(place, name string, argv ...string) (Process, error) {
	if old, err := l.Process(name); err == nil && old.Running() {
		return old, fmt.Errorf("start %s in %s: %s runs already, as PID %d", argv[0], place, name, old.PID)
	}
	log, err := os.OpenFile(l.LogPath(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return Process{}, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer log.Close()
	info, err := log.Stat()
	if err != nil {
		return Process{}, fmt.Errorf("stat log of %s: %w", name, err)
	}
	cmd := l.Command(context.Background(), place, argv...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return Process{}, err
	}
	p := Process{Name: name, Place: place, Argv: argv, PID: cmd.Process.Pid, LogFrom: info.Size()}
	stat, err := procStat(p.PID) // not reaped yet, so it is there
	p.Born = stat.born
	go cmd.Wait() // reaps it, should it end before this process does
	if err == nil {
		err = l.record(p)
	}
	if err != nil {
		return p, errors.Join(err, cmd.Process.Kill())
	}
	return p, nil
}

func (l *Lab) recordPath(name string) string {
	return filepath.Join(baseDir(l.opts.Name), runDir, name+".json")
}

func (l *Lab) record(p Process) error {
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("record process %s: %w", p.Name, err)
	}
	return manifest.WriteAtomic(l.recordPath(p.Name), append(data, '\n'))
}

// Process returns the process last started under the name; it may have ended.
// The error wraps [fs.ErrNotExist] if there was none, or it was stopped.
func (l *Lab) Process(name string) (Process, error) {
	data, err := os.ReadFile(l.recordPath(name))
	if err != nil {
		return Process{}, fmt.Errorf("find process %s: %w", name, err)
	}
	var p Process
	if err := json.Unmarshal(data, &p); err != nil {
		return p, fmt.Errorf("find process %s: %w", name, err)
	}
	return p, nil
}

// Running reports whether the process has not ended. The first thread of one
// that was killed may be a zombie while others still hold what was open.
func (p Process) Running() bool {
	stat, err := procStat(p.PID)
	return err == nil && stat.born == p.Born && (stat.state != 'Z' || stat.threads > 1)
}

// Stop sends SIGTERM to the process of that name and waits for its end. One
// that takes longer than 15 s is killed, which is an error. It is no error if
// none runs.
func (l *Lab) Stop(name string) error {
	return l.end(name, syscall.SIGTERM)
}

// Kill sends SIGKILL to the process of that name and waits for its end. It is
// no error if none runs.
func (l *Lab) Kill(name string) error {
	return l.end(name, syscall.SIGKILL)
}

func (l *Lab) end(name string, sig syscall.Signal) error {
	p, err := l.Process(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.signal(sig); err != nil {
		return fmt.Errorf("send %v to %s: %w", sig, name, err)
	}
	if !p.waitEnd(stopTimeout) {
		err = fmt.Errorf("%s did not end within %s of %v; its log ends:\n%s",
			name, stopTimeout, sig, l.logTail(p))
		_ = p.signal(syscall.SIGKILL) // if this fails too, Down will kill it
		p.waitEnd(stopTimeout)
	}
	return errors.Join(err, os.Remove(l.recordPath(name)))
}

// signal sends sig to this process, never to another that has got its PID.
func (p Process) signal(sig syscall.Signal) error {
	handle, err := os.FindProcess(p.PID) // a pidfd, so what is checked next stays true
	if err != nil {
		return err
	}
	defer handle.Release()
	if !p.Running() {
		return nil
	}
	if err := handle.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (p Process) waitEnd(timeout time.Duration) bool {
	for deadline := time.Now().Add(timeout); p.Running(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// processStat is what of /proc/PID/stat concerns us.
type processStat struct {
	state   byte
	threads int
	born    uint64 // in clock ticks since boot
}

func procStat(pid int) (stat processStat, err error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return stat, fmt.Errorf("read state of process %d: %w", pid, err)
	}
	// The command's name, in brackets, may hold anything; proc(5) counts the
	// state as field 3, the threads as field 20, the start time as field 22.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return stat, fmt.Errorf("read state of process %d: short line %q", pid, data)
	}
	stat.state = fields[0][0]
	threads, terr := strconv.Atoi(fields[17])
	born, berr := strconv.ParseUint(fields[19], 10, 64)
	stat.threads, stat.born = threads, born
	return stat, errors.Join(terr, berr)
}

// log returns what the process has written so far.
func (l *Lab) log(p Process) []byte {
	data, err := os.ReadFile(l.LogPath(p.Name))
	if err != nil || int64(len(data)) < p.LogFrom {
		return data
	}
	return data[p.LogFrom:]
}

// logTail returns the last lines that the process wrote.
func (l *Lab) logTail(p Process) string {
	lines := strings.Split(strings.TrimRight(string(l.log(p)), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// waitForLog waits until the process has written one of the texts. If it ends
// before, or ctx does, the error shows the end of its log.
func (l *Lab) waitForLog(ctx context.Context, p Process, texts ...string) error {
	for {
		running := p.Running() // asked first: what it wrote before its end counts
		log := l.log(p)
		for _, text := range texts {
			if bytes.Contains(log, []byte(text)) {
				return nil
			}
		}
		if !running {
			return fmt.Errorf("%s ended before it wrote %q; its log ends:\n%s", p.Name, texts[0], l.logTail(p))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to write %q: %w; its log ends:\n%s",
				p.Name, texts[0], context.Cause(ctx), l.logTail(p))
		case <-time.After(10 * time.Millisecond):
		}
	}
}
