package loopback

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/service"
)

// From include/uapi/linux/sctp.h; see RFC 6458, sections 5.3.4, 5.3.5 and 8.1.
const (
	sctpInitMsg     = 2
	sctpRecvRcvInfo = 32
	cmsgSndInfo     = 2
	cmsgRcvInfo     = 3
	sctpUnordered   = 1 << 0
)

const (
	// sctpStreams is how many streams a relay offers, of which the peer may
	// take fewer.
	sctpStreams = 256
	// sctpMaxMessage bounds what a relay keeps of one message.
	sctpMaxMessage = 1 << 20
)

// hasSCTP reports whether the kernel has SCTP at the moment. Opening a socket
// would load its module, which takes all SCTP packets away from programs that do
// without the kernel's; this is why kube-proxy opens none either
// (KEP-0614, "SCTP support").
func hasSCTP() bool {
	known, err := os.ReadFile("/proc/net/protocols")
	return err == nil && bytes.Contains(known, []byte("\nSCTP "))
}

// errNoSCTP says that nobody has used SCTP on this node so far.
var errNoSCTP = errors.New("the kernel has no SCTP loaded")

// sctpListener relays associations, message by message: on the same stream, in
// or out of order, with the same payload protocol identifier.
type sctpListener struct {
	*net.TCPListener // Go's own word for a stream socket; nothing of it is TCP's
	chooser
	log  *slog.Logger
	free *places // shared with other listeners
}

func listenSCTP(k key, log *slog.Logger, free *places) (listener, error) {
	if !hasSCTP() {
		return nil, errNoSCTP
	}
	fd, err := sctpSocket(k.addr())
	if err != nil {
		return nil, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil && k.Family == service.IPv6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(k.addr()))
	}
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	f := os.NewFile(uintptr(fd), "sctp")
	defer f.Close() // the listener has a copy
	if err != nil {
		return nil, fmt.Errorf("listen on SCTP %s: %w", k.addr(), err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen on SCTP %s: %w", k.addr(), err)
	}
	s := &sctpListener{TCPListener: l.(*net.TCPListener), log: log, free: free} // what Go makes of any stream socket
	go s.accept()
	return s, nil
}

func (s *sctpListener) accept() {
	for {
		client, err := s.AcceptTCP()
		switch {
		case closed(err):
			return
		case err != nil:
			s.log.Warn("node port on loopback", "address", s.Addr(), "error", err)
			time.Sleep(acceptPause)
		case !s.free.take():
			s.log.Debug("node port on loopback", "address", s.Addr(), "error", errFull)
			_ = client.SetLinger(0)
			_ = client.Close()
		default:
			go func() {
				defer s.free.release()
				s.relay(client)
			}()
		}
	}
}

// relay joins a client to a backend until one of them has ended: SCTP has no
// association that is half closed.
func (s *sctpListener) relay(client *net.TCPConn) {
	defer client.Close()
	backend := s.pick(time.Now())
	server, err := dialSCTP(backend)
	if err != nil {
		s.log.Debug("node port on loopback: backend is not reached", "backend", backend, "error", err)
		_ = client.SetLinger(0) // an ABORT, in place of the reset of TCP
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{server, client}, {client, server}} {
		both.Go(func() {
			err := pourMessages(way[0], way[1])
			for _, c := range way {
				if err != nil {
					_ = c.SetLinger(0)
				}
				_ = c.Close()
			}
		})
	}
	both.Wait()
}

// pourMessages copies messages until from ends, which is no error, or breaks.
func pourMessages(to, from *net.TCPConn) error {
	if err := withFD(from, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_SCTP, sctpRecvRcvInfo, 1) }); err != nil {
		return err
	}
	in, err := from.SyscallConn()
	if err != nil {
		return err
	}
	out, err := to.SyscallConn()
	if err != nil {
		return err
	}
	var message []byte
	buf, control := make([]byte, 64<<10), make([]byte, 256)
	for {
		var n, nc, flags int
		waited := in.Read(func(fd uintptr) bool {
			n, nc, flags, _, err = unix.Recvmsg(int(fd), buf, control, 0)
			return !errors.Is(err, unix.EAGAIN)
		})
		switch {
		case closed(waited): // by the other way
			return nil
		case waited != nil || err != nil:
			return errors.Join(waited, err)
		case n == 0 && flags&unix.MSG_EOR == 0:
			return nil
		case len(message)+n > sctpMaxMessage:
			return fmt.Errorf("message of more than %d bytes", sctpMaxMessage)
		}
		message = append(message, buf[:n]...)
		if flags&unix.MSG_EOR == 0 {
			continue
		}
		info := sendInfo(control[:nc])
		waited = out.Write(func(fd uintptr) bool {
			_, err = unix.SendmsgN(int(fd), message, info, nil, unix.MSG_NOSIGNAL)
			return !errors.Is(err, unix.EAGAIN)
		})
		if waited != nil || err != nil {
			return errors.Join(waited, err)
		}
		message = message[:0]
	}
}

// sendInfo makes of what came with a message what goes with its copy: struct
// sctp_rcvinfo and struct sctp_sndinfo begin with stream (u16) and, after ssn
// (u16) in the first, flags (u16) and payload protocol (u32, as the sender
// wrote it). In host order but for that.
func sendInfo(control []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil // stream 0, in order
	}
	for _, m := range messages {
		if m.Header.Level != unix.IPPROTO_SCTP || m.Header.Type != cmsgRcvInfo || len(m.Data) < 12 {
			continue
		}
		out := make([]byte, unix.CmsgSpace(16))
		h := (*unix.Cmsghdr)(unsafe.Pointer(&out[0]))
		h.Level, h.Type = unix.IPPROTO_SCTP, cmsgSndInfo
		h.SetLen(unix.CmsgLen(16))
		body := out[unix.CmsgLen(0):]
		copy(body, m.Data[:2])
		binary.NativeEndian.PutUint16(body[2:], binary.NativeEndian.Uint16(m.Data[4:])&sctpUnordered)
		copy(body[4:8], m.Data[8:12])
		return out
	}
	return nil
}

// dialSCTP opens an association with a backend.
func dialSCTP(backend netip.AddrPort) (*net.TCPConn, error) {
	fd, err := sctpSocket(backend)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sctp")
	defer f.Close() // the connection has a copy
	limit := unix.NsecToTimeval(int64(dialTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return nil, fmt.Errorf("set time limit: %w", err)
	}
	if err := unix.Connect(fd, sockaddr(backend)); err != nil {
		return nil, fmt.Errorf("open SCTP association with %s: %w", backend, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("open SCTP association with %s: %w", backend, err)
	}
	return c.(*net.TCPConn), nil // as in listenSCTP
}

// sctpSocket returns a blocking socket of the address's family.
func sctpSocket(a netip.AddrPort) (int, error) {
	family := unix.AF_INET
	if a.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return -1, fmt.Errorf("open SCTP socket: %w", err)
	}
	init := binary.NativeEndian.AppendUint16(nil, sctpStreams) // struct sctp_initmsg; 0: the default
	init = append(init, 0, 0, 0, 0, 0, 0)
	if err := unix.SetsockoptString(fd, unix.IPPROTO_SCTP, sctpInitMsg, string(init)); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("set SCTP streams: %w", err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func withFD(c *net.TCPConn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) { err = f(int(fd)) }), err)
}
