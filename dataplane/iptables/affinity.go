package iptables

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeproxy/nodeproxy/service"
)

// recentDir is where xt_recent shows its lists, of the thread's namespace.
const recentDir = "/proc/thread-self/net/xt_recent"

// Affinities returns whom xt_recent remembers for the Services of a Table. Of an
// entry's age nothing is said: one that is over begins anew.
func Affinities(table *service.Table) ([]service.Affinity, error) {
	var out []service.Affinity
	err := eachAffinityList(table, func(sp *service.ServicePort, backend netip.AddrPort, path string) error {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			word, _, _ := strings.Cut(strings.TrimPrefix(line, "src="), " ")
			client, err := netip.ParseAddr(word)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			out = append(out, service.Affinity{Port: sp.Name, Family: sp.Family, Client: client, Backend: backend})
		}
		return nil
	})
	return out, err
}

// Remember gives xt_recent what another mode remembered. The rules that hold its
// lists must be in place.
func Remember(table *service.Table, all []service.Affinity) error {
	clients := map[service.Affinity][]netip.Addr{}
	for _, a := range all {
		list := service.Affinity{Port: a.Port, Family: a.Family, Backend: a.Backend}
		clients[list] = append(clients[list], a.Client)
	}
	return eachAffinityList(table, func(sp *service.ServicePort, backend netip.AddrPort, path string) error {
		for _, client := range clients[service.Affinity{Port: sp.Name, Family: sp.Family, Backend: backend}] {
			if err := os.WriteFile(path, []byte("+"+client.String()+"\n"), 0); err != nil {
				return fmt.Errorf("remember %s: %w", client, err)
			}
		}
		return nil
	})
}

// eachAffinityList calls f with the list of each backend that has one.
func eachAffinityList(table *service.Table, f func(sp *service.ServicePort, backend netip.AddrPort, path string) error) error {
	for _, res := range table.Services {
		for i := range res.Ports {
			sp := &res.Ports[i]
			if sp.AffinityTimeout == 0 {
				continue
			}
			var seen []netip.AddrPort
			for _, b := range slices.Concat(sp.Backends[:]...) {
				if slices.Contains(seen, b.AddrPort) {
					continue
				}
				seen = append(seen, b.AddrPort)
				name := portChain(chainSep, sp, b.AddrPort.String())
				if err := f(sp, b.AddrPort, filepath.Join(recentDir, name)); err != nil {
					return fmt.Errorf("affinity of %s: %w", sp.Name, err)
				}
			}
		}
	}
	return nil
}
