package lab

import (
	"fmt"
	"net/netip"
	"os/exec"
)

// throughput prints a table: rows are paths to pod-b1's iperf3 server.
func (d *demo) throughput() {
	if _, err := exec.LookPath("iperf3"); err != nil {
		d.note("iperf3 is not installed: nothing measured")
		return
	}
	d.printf("   %-10s %-34s %10s %12s\n", "from", "to", "Gbit/s", "of direct")
	for _, v6 := range families {
		direct := netip.AddrPortFrom(MustPlace("pod-b1").Addr(v6), PortIPerf)
		d.speedRows("pod-a1", direct, service(v6, 14, PortIPerf))
		d.speedRows("client", direct, netip.AddrPortFrom(MustPlace("node-b").Addr(v6), 30521))
	}
}

// speedRows measures the direct path and that through a Service.
func (d *demo) speedRows(from string, direct, through netip.AddrPort) {
	var base float64
	for _, to := range []netip.AddrPort{direct, through} {
		result, err := d.lab.IPerf(d.ctx, from, to, d.opts.Throughput)
		if err == nil && result.BitsPerSecond == 0 {
			err = fmt.Errorf("nothing came through")
		}
		if err != nil {
			d.check(from+" → "+to.String(), "", err)
			continue
		}
		share := ""
		if to == direct {
			base = result.BitsPerSecond
		} else if base > 0 {
			share = fmt.Sprintf("%.0f %%", 100*result.BitsPerSecond/base)
		}
		d.printf("   %-10s %-34s %10.2f %12s\n", from, to, result.BitsPerSecond/1e9, share)
	}
}
