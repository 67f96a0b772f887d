package ebpf

import (
	"bytes"
	"net"

	"golang.org/x/sys/unix"
)

// sender puts frames on eth0 of the namespace in which it was opened.
type sender struct{ fd, ifindex int }

func openSender() (*sender, error) {
	l, err := net.InterfaceByName("eth0")
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	return &sender{fd, l.Index}, err
}

func (s *sender) send(packet []byte) error {
	return unix.Sendto(s.fd, packet, 0, &unix.SockaddrLinklayer{Ifindex: s.ifindex})
}

func (s *sender) Close() { _ = unix.Close(s.fd) }

// sendFrame puts a frame on eth0 of the thread's namespace, for the hardware address.
func sendFrame(packet []byte, to net.HardwareAddr) error {
	s, err := openSender()
	if err != nil {
		return err
	}
	defer s.Close()
	packet = bytes.Clone(packet)
	copy(packet, to)
	return s.send(packet)
}

// everybody is the hardware address of all on a link.
var everybody = net.HardwareAddr{255, 255, 255, 255, 255, 255}

// hostAddr is the hardware address of the node's uplink.
func (n *testNet) hostAddr() (to net.HardwareAddr, err error) {
	err = inNS(n.node, func() error {
		l, err := net.InterfaceByName("eth0")
		if err == nil {
			to = l.HardwareAddr
		}
		return err
	})
	return to, err
}
