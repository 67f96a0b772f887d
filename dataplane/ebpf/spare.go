package ebpf

import (
	"fmt"
	"os"
)

const (
	// firstSpare is the first port that needs no privilege.
	firstSpare = 1024
	// lastSpare is below the node ports of a cluster with default settings.
	lastSpare = 29999
	// fewSpare are not worth it.
	fewSpare = 1024
)

// sparePorts are the ports, both ends included, that masqueraded flows get
// while the reserved ones are taken: below those that the network namespace of the
// caller gives to its own sockets. 0, 0 if these leave too few, or are not known.
func sparePorts() (first, last uint16) {
	var low, high int
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0, 0 // a reserve that is not used is no fault
	}
	if _, err := fmt.Sscan(string(text), &low, &high); err != nil {
		return 0, 0
	}
	if end := min(low-1, lastSpare); end-firstSpare+1 >= fewSpare {
		return firstSpare, uint16(end)
	}
	return 0, 0
}
