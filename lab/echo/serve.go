package echo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Serve answers under the given name on every address of both families until
// ctx is done, which is no error. It calls ready, once, when all of its
// sockets accept.
//
//   - TCP 7000 writes the line "NAME SOURCE", then echoes what it reads.
//   - UDP 7000 answers each datagram with "NAME SOURCE PAYLOAD", from the
//     address that the datagram was sent to.
//   - TCP 8080 is HTTP: "/" answers "NAME SOURCE", "/json" an [Answer].
func Serve(ctx context.Context, name string, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var lc net.ListenConfig
	tcp, err := lc.Listen(ctx, "tcp", fmt.Sprintf("[::]:%d", PortEcho))
	if err != nil {
		return fmt.Errorf("listen for TCP echo: %w", err)
	}
	defer tcp.Close()
	udp, err := listenUDP(ctx)
	if err != nil {
		return err
	}
	defer udp.Close()
	web, err := lc.Listen(ctx, "tcp", fmt.Sprintf("[::]:%d", PortHTTP))
	if err != nil {
		return fmt.Errorf("listen for HTTP: %w", err)
	}
	server := &http.Server{Handler: handler(name), ReadHeaderTimeout: 10 * time.Second}
	defer server.Close()

	failed := make(chan error, 3)
	go func() { failed <- serveTCP(tcp, name) }()
	go func() { failed <- serveUDP(udp, name) }()
	go func() { failed <- server.Serve(web) }()
	ready()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("serve as %s: %w", name, err)
	}
}

func serveTCP(l net.Listener, name string) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if _, err := fmt.Fprintln(conn, answerTo(name, conn)); err == nil {
				_, _ = io.Copy(conn, conn) // ends when the peer does; nobody to tell
			}
		}()
	}
}

func answerTo(name string, conn net.Conn) Answer {
	return Answer{
		Name:   name,
		Source: unmap(conn.RemoteAddr().(*net.TCPAddr).AddrPort()),
		Local:  unmap(conn.LocalAddr().(*net.TCPAddr).AddrPort()),
	}
}

// listenUDP returns a socket that reports the destination of each datagram.
func listenUDP(ctx context.Context) (*net.UDPConn, error) {
	lc := net.ListenConfig{}
	conn, err := lc.ListenPacket(ctx, "udp", fmt.Sprintf("[::]:%d", PortEcho))
	if err != nil {
		return nil, fmt.Errorf("listen for UDP echo: %w", err)
	}
	udp := conn.(*net.UDPConn)
	raw, err := udp.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		udp.Close()
		return nil, fmt.Errorf("ask for IPV6_PKTINFO: %w", err)
	}
	return udp, nil
}

func serveUDP(conn *net.UDPConn, name string) error {
	buf := make([]byte, 1<<16)
	oob := make([]byte, 128)
	for {
		n, oobn, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an ICMP error of an earlier reply is not this socket's end
		}
		reply := fmt.Appendf(nil, "%s ", Answer{Name: name, Source: unmap(from)})
		reply = append(reply, buf[:n]...)
		// The control message that says where the datagram arrived is, handed
		// back, the one that says where the reply shall come from. It holds for
		// IPv4 too: the kernel maps and unmaps the address.
		_, _, _ = conn.WriteMsgUDPAddrPort(reply, oob[:oobn], from)
	}
}

func handler(name string) http.Handler {
	answer := func(r *http.Request) Answer {
		a := Answer{Name: name}
		if source, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			a.Source = unmap(source)
		}
		if local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
			a.Local = unmap(local.AddrPort())
		}
		return a
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, answer(r))
	})
	mux.HandleFunc("GET /json", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer(r))
	})
	return mux
}
