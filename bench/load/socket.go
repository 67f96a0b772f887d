package load

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// newOperation returns what does one operation and says when it had ended, and
// what gives back what the operations share.
func newOperation(c Config) (op func() (time.Time, error), done func()) {
	d := newDialer(c.To, c.Timeout)
	switch c.Kind {
	case Datagram:
		return d.datagram, func() {}
	case Request:
		return d.request, d.drop
	case ConnectClose:
		d.patient = true
		return d.connectOnce, func() {}
	}
	return d.connectOnce, func() {}
}

// dialer opens sockets to one address. It is for one thread.
type dialer struct {
	to      netip.AddrPort
	family  int
	addr    unix.Sockaddr
	timeout unix.Timeval
	buf     [2048]byte
	conn    int // of request: the established connection, or -1
	// patient connections are not reset: the server closes them first.
	patient bool
}

func newDialer(to netip.AddrPort, timeout time.Duration) *dialer {
	d := &dialer{to: to, timeout: unix.NsecToTimeval(timeout.Nanoseconds()), conn: -1}
	if to.Addr().Is4() {
		d.family, d.addr = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	} else {
		d.family, d.addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	return d
}

// open returns a connected socket.
func (d *dialer) open(kind int) (int, error) {
	fd, err := unix.Socket(d.family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &d.timeout),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &d.timeout))
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil && kind == unix.SOCK_STREAM && !d.patient {
		// A reset, not TIME_WAIT, or the ports run out.
		err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	if err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("setsockopt", err)
	}
	if err := d.connect(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (d *dialer) connect(fd int) error {
	for {
		err := unix.Connect(fd, d.addr)
		switch err {
		case nil, unix.EISCONN:
			return nil
		case unix.EINTR: // a signal of the runtime; asked again, connect(2) goes on to wait
		case unix.EINPROGRESS, unix.EALREADY: // what SO_SNDTIMEO makes of a time-out
			return fmt.Errorf("connect to %s: %w", d.to, os.ErrDeadlineExceeded)
		default:
			return fmt.Errorf("connect to %s: %w", d.to, err)
		}
	}
}

var errClosed = errors.New("the connection was closed")

// read reads something, which is returned until the next call.
func (d *dialer) read(fd int) ([]byte, error) {
	for {
		n, err := unix.Read(fd, d.buf[:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return nil, fmt.Errorf("read from %s: %w", d.to, os.ErrDeadlineExceeded)
		case err != nil:
			return nil, fmt.Errorf("read from %s: %w", d.to, err)
		case n == 0:
			return nil, fmt.Errorf("read from %s: %w", d.to, errClosed)
		default:
			return d.buf[:n], nil
		}
	}
}

func (d *dialer) write(fd int, data []byte) error {
	for {
		_, err := unix.Write(fd, data)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write to %s: %w", d.to, err)
		}
		return nil
	}
}

func (d *dialer) connectOnce() (time.Time, error) {
	fd, err := d.open(unix.SOCK_STREAM)
	end := time.Now()
	if err != nil {
		return end, err
	}
	defer unix.Close(fd)
	if _, err = d.read(fd); err == nil && d.patient {
		if _, err = d.read(fd); errors.Is(err, errClosed) {
			err = nil
		}
	}
	return end, err
}

var payload = []byte("a question of a resolver, or so.")

func (d *dialer) datagram() (time.Time, error) {
	fd, err := d.open(unix.SOCK_DGRAM)
	if err != nil {
		return time.Time{}, err
	}
	defer unix.Close(fd)
	if err := d.write(fd, payload); err != nil {
		return time.Time{}, err
	}
	_, err = d.read(fd)
	return time.Now(), err
}

// request opens the connection if there is none, which is not measured apart:
// it happens once.
func (d *dialer) request() (end time.Time, err error) {
	if d.conn < 0 {
		if d.conn, err = d.open(unix.SOCK_STREAM); err != nil {
			return end, err
		}
		if _, err := d.read(d.conn); err != nil { // the greeting
			d.drop()
			return end, err
		}
	}
	err = d.write(d.conn, payload[:1])
	if err == nil {
		_, err = d.read(d.conn)
	}
	if err != nil {
		d.drop()
	}
	return time.Now(), err
}

func (d *dialer) drop() {
	if d.conn >= 0 {
		unix.Close(d.conn)
	}
	d.conn = -1
}

// preciseSleep makes sleeps of the calling thread end on time: the kernel may
// let others wait 50 us longer, so that timers end together.
func preciseSleep() {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // without it, the open loop is a little late
}

// sleepUntil sleeps in the kernel: the runtime's timers are tens of
// microseconds late.
func sleepUntil(t time.Time) {
	for {
		d := time.Until(t)
		if d <= 0 {
			return
		}
		ts := unix.NsecToTimespec(d.Nanoseconds())
		_ = unix.Nanosleep(&ts, nil) // interrupted by a signal, it sleeps for the rest
	}
}
