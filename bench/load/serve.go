package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Ports of [Serve].
const (
	// PortConnect greets over TCP and closes, and echoes over UDP.
	PortConnect = 7100
	// PortRequest echoes over TCP.
	PortRequest = 7101
)

// servers is how many threads wait for connections, or for datagrams.
const servers = 2

// Serve answers what [Run] does, on every address of both families, until ctx
// ends. It does as little as can be: what a server does by itself makes every
// Service look alike. ready is called when it listens.
func Serve(ctx context.Context, ready func()) error {
	greet, err := listen(unix.SOCK_STREAM, PortConnect)
	if err != nil {
		return err
	}
	echo, err := listen(unix.SOCK_STREAM, PortRequest)
	if err != nil {
		return err
	}
	datagrams, err := listen(unix.SOCK_DGRAM, PortConnect)
	if err != nil {
		return err
	}
	failed := make(chan error, 3*servers)
	for range servers {
		go onThread(failed, func() error { return acceptEach(greet, greetAndClose) })
		go onThread(failed, func() error { return answerDatagrams(datagrams) })
	}
	go onThread(failed, func() error {
		return acceptEach(echo, func(fd int) { go onThread(nil, func() error { return echoAll(fd) }) })
	})
	ready()
	select {
	case <-ctx.Done():
		return nil // the process ends, and with it threads and sockets
	case err := <-failed:
		return err
	}
}

func onThread(failed chan<- error, fn func() error) {
	runtime.LockOSThread()
	if err := fn(); failed != nil {
		failed <- err
	}
}

// listen returns a socket for both families; one for datagrams tells where
// they were sent to.
func listen(kind, port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0))
	}
	if err == nil && kind == unix.SOCK_DGRAM {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: port})
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 4096)
	}
	if err != nil {
		return -1, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return fd, nil
}

func acceptEach(listener int, serve func(fd int)) error {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			serve(fd)
		case unix.EINTR, unix.ECONNABORTED:
		default:
			return os.NewSyscallError("accept", err)
		}
	}
}

var greeting = []byte("hello\n")

func greetAndClose(fd int) {
	_, _ = unix.Write(fd, greeting) // the client may be gone
	unix.Close(fd)
}

func echoAll(fd int) error {
	defer unix.Close(fd)
	if unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) != nil {
		return nil // the client is gone
	}
	greetNow, buf := greeting, make([]byte, 2048)
	for {
		if _, err := unix.Write(fd, greetNow); err != nil {
			return nil
		}
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			greetNow = nil
			continue
		}
		if err != nil || n == 0 {
			return nil
		}
		greetNow = buf[:n]
	}
}

func answerDatagrams(fd int) error {
	buf, oob := make([]byte, 2048), make([]byte, 128)
	for {
		n, oobn, _, from, err := unix.Recvmsg(fd, buf, oob, 0)
		if err == unix.EINTR || err == unix.ECONNREFUSED || err == unix.EHOSTUNREACH {
			continue // the last two are ICMP errors of earlier answers
		}
		if err != nil {
			return os.NewSyscallError("recvmsg", err)
		}
		// The control message that says where it arrived is the one that says
		// where the answer shall come from. A client may be gone.
		_, _ = unix.SendmsgN(fd, buf[:n], oob[:oobn], from, 0)
	}
}
