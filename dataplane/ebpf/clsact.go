package ebpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filterPriority is ours by habit, not by right: filters are recognised by name.
const filterPriority = 7770

func filterName(instance string) string { return "nodeproxy/" + instance }

// attachFilter puts a program on one side of an interface the old way, as a
// direct-action filter of clsact. One of ours that is there gets the program; or,
// with ahead, the program goes before it, and what it passes on goes there still.
func attachFilter(l netlink.Link, side uint32, prog *ebpf.Program, instance string, ahead bool) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	filters, err := netlink.FilterList(l, side)
	if err != nil {
		return fmt.Errorf("list filters: %w", err)
	}
	priority := uint16(filterPriority)
	if _, found := filterHandle(filters, priority, instance); ahead && found {
		priority--
	}
	handle, _ := filterHandle(filters, priority, instance)
	f := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: side, Handle: handle,
			Protocol: unix.ETH_P_ALL, Priority: priority},
		Fd: prog.FD(), Name: filterName(instance), DirectAction: true,
	}
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("attach clsact filter: %w", err)
	}
	if ahead {
		return nil
	}
	// One that was ahead has done its work.
	for _, f := range filters {
		if isOurs(f, instance) && f.Attrs().Priority != priority {
			if err := netlink.FilterDel(f); err != nil {
				return fmt.Errorf("remove clsact filter: %w", err)
			}
		}
	}
	return nil
}

func isOurs(f netlink.Filter, instance string) bool {
	b, ok := f.(*netlink.BpfFilter)
	return ok && b.Name == filterName(instance)
}

// filterHandle is that of our filter of a priority, or one that is free there.
func filterHandle(filters []netlink.Filter, priority uint16, instance string) (handle uint32, found bool) {
	handle = 1
	for _, f := range filters {
		if f.Attrs().Priority != priority {
			continue
		}
		if isOurs(f, instance) {
			return f.Attrs().Handle, true
		}
		handle = max(handle, f.Attrs().Handle+1)
	}
	return handle, false
}

// removeFilters removes the filters of an instance from every interface.
func removeFilters(instance string) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		errs = append(errs, removeFiltersOf(l, instance))
	}
	return errors.Join(errs...)
}

// removeFiltersOf removes our filters, and clsact too if it is empty then.
func removeFiltersOf(l netlink.Link, instance string) error {
	var errs []error
	ours, others := 0, 0
	for _, side := range [...]uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(l, side)
		if err != nil {
			continue // no clsact
		}
		for _, f := range filters {
			if !isOurs(f, instance) {
				others++
				continue
			}
			ours++
			if err := netlink.FilterDel(f); err != nil {
				errs = append(errs, fmt.Errorf("interface %s: remove filter: %w", l.Attrs().Name, err))
			}
		}
	}
	if ours == 0 || others > 0 {
		return errors.Join(errs...)
	}
	// An empty clsact does nothing; but one that was there
	// before us cannot be told apart, so only ours-and-now-empty ones go.
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscDel(qdisc); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, fmt.Errorf("interface %s: remove clsact: %w", l.Attrs().Name, err))
	}
	return errors.Join(errs...)
}
