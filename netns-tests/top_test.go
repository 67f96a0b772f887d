package netnstests

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/hinshun/vt10x"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// screen is a terminal with a command of nodeproxy on it. It answers no
// queries, as a serial line does not.
type screen struct {
	vt10x.Terminal
	keys   *os.File // the side of who sits before it
	line   *os.File // the side of the command
	cmd    *lab.Cmd
	before *unix.Termios
	wrote  safeBuffer
	shown  chan struct{} // closed when nobody writes any more
}

// prompt is on the screen before the command.
const prompt = "operator@node-a:~# nodeproxy"

// onScreen starts a command of nodeproxy on node-a, as a shell does.
func onScreen(t *testing.T, l *lab.Lab, args ...string) *screen {
	t.Helper()
	keys, line, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{Terminal: vt10x.New(vt10x.WithSize(120, 24)), keys: keys, line: line, shown: make(chan struct{})}
	t.Cleanup(func() { keys.Close() })
	if err := pty.Setsize(keys, &pty.Winsize{Cols: 120, Rows: 24}); err != nil {
		t.Fatal(err)
	}
	s.before = s.settings(t)
	go func() {
		defer close(s.shown)
		_, _ = io.Copy(io.MultiWriter(s, &s.wrote), keys) // until there is no line
	}()
	fmt.Fprint(line, prompt+"\n")
	s.cmd = l.Command(t.Context(), "node-a", append([]string{l.Options().Binary}, append(args, "--instance", l.Netns("node-a"))...)...)
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = line, line, line
	s.cmd.Env = append(os.Environ(), "TERM=xterm-256color")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *screen) settings(t *testing.T) *unix.Termios {
	t.Helper()
	is, err := unix.IoctlGetTermios(int(s.line.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

func (s *screen) press(t *testing.T, keys string) {
	t.Helper()
	if _, err := io.WriteString(s.keys, keys); err != nil {
		t.Error(err)
	}
}

// shows wants all of some texts to be seen, and none of others.
func (s *screen) shows(texts []string, not ...string) func() error {
	return func() error {
		now := s.String()
		for _, text := range texts {
			if !strings.Contains(now, text) {
				return fmt.Errorf("no %q on the screen:\n%s", text, now)
			}
		}
		for _, text := range not {
			if strings.Contains(now, text) {
				return fmt.Errorf("%q is on the screen:\n%s", text, now)
			}
		}
		return nil
	}
}

// end waits for the command, and wants the terminal to be as it was.
func (s *screen) end(t *testing.T) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("the command ended with %v:\n%s", err, s)
		}
	case <-time.After(patience):
		t.Fatalf("the command does not end:\n%s", s)
	}
	if after := s.settings(t); !reflect.DeepEqual(after, s.before) {
		t.Errorf("the terminal has other settings than before: %+v, and had %+v", after, s.before)
	}
	if err := s.line.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-s.shown:
	case <-time.After(patience):
		t.Fatal("somebody still writes to the terminal")
	}
	if s.Mode()&(vt10x.ModeAltScreen|vt10x.ModeMouseMask|vt10x.ModeAppKeypad) != 0 || !s.CursorVisible() || !strings.HasPrefix(s.String(), prompt) {
		t.Errorf("the terminal is not as it was: mode %b, cursor %v, screen\n%s", s.Mode(), s.CursorVisible(), s)
	}
}

// TestTopOnATerminal sits before nodeproxy top: Services, then the backends of
// the second, back to the Services, and then a terminal as it was before.
func TestTopOnATerminal(t *testing.T) {
	eachColumn(t, func(t *testing.T, c column) {
		l := c.up(t, false)
		apply(t, l, find("web"), find("single"))
		startAgents(t, l)
		dial := func(v6 bool) {
			if _, err := l.Dial(t.Context(), "client", echo.TCP, find("single").addr("node-a", 80, v6)); err != nil {
				t.Error(err)
			}
		}
		dial(false)
		dial(true)
		s := onScreen(t, l, "top", "--interval", "200ms", "--sort", "name")
		// Connections, their rate, and drops, of which the agent's own self-test is none.
		eventually(t, patience, s.shows([]string{"nodeproxy top  8 ports of Services", "> default/single:echo      TCP/IPv4  1            0   0 ", "  default/web:echo", "[q]uit"}, prompt))
		dial(false)
		eventually(t, patience, s.shows([]string{"> default/single:echo      TCP/IPv4  2 "}))
		s.press(t, down)
		eventually(t, patience, s.shows([]string{"> default/single:echo      TCP/IPv6  1 "}, "> default/single:echo      TCP/IPv4"))
		s.press(t, enter)
		backend := netip.AddrPortFrom(lab.MustPlace("pod-a1").IPv6, 7000)
		eventually(t, patience, s.shows([]string{"backends of default/single:echo/TCP/IPv6", "> " + backend.String(), "[q]uit"}, "default/web:echo"))
		s.press(t, escape)
		eventually(t, patience, s.shows([]string{"8 ports of Services", "> default/single:echo      TCP/IPv4", "default/web:echo"}, backend.String()))
		s.press(t, down+down+down+enter) // of a Service that nobody has called
		eventually(t, patience, s.shows([]string{"backends of default/", map[bool]string{true: "none has had a flow yet", false: "> "}[c.Mode == lab.ModeEBPF]}))
		s.press(t, "q")
		s.end(t)
		s = onScreen(t, l, "top")
		eventually(t, patience, s.shows([]string{"8 ports of Services"}))
		s.press(t, interrupt)
		s.end(t)
	})
}

// Keys, as a terminal sends them.
const (
	down      = "\x1b[B"
	enter     = "\r"
	escape    = "\x1b"
	interrupt = "\x03"
)

// TestNothingIsAskedOfATerminal wants commands that only print to do just that:
// a terminal that does not answer, as many a serial line, would keep who asks it
// for its colours waiting for seconds.
func TestNothingIsAskedOfATerminal(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	l := columns[0].up(t, false)
	s := onScreen(t, l, "top", "--help")
	s.end(t)
	if text := s.wrote.String(); strings.Contains(text, "\x1b") || !strings.Contains(text, "Usage:") {
		t.Errorf("nodeproxy top --help writes to a terminal: %q", text)
	}
}
