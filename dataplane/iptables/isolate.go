package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/dataplane/command"
	"github.com/nodeproxy/nodeproxy/service"
)

// leftOut is why a Service is left out, until it changes.
type leftOut struct {
	res *service.Resolved
	why string
}

// Refused implements dataplane.Refuser.
func (d *Dataplane) Refused() map[service.Name]string {
	if len(d.refused) == 0 {
		return nil
	}
	out := make(map[service.Name]string, len(d.refused))
	for name, r := range d.refused {
		out[name] = r.why
	}
	return out
}

// admitted returns a Table without the Services that are left out. One that has
// changed is let in again.
func (d *Dataplane) admitted(table *service.Table) *service.Table {
	for name, r := range d.refused {
		if table.Services[name] != r.res {
			delete(d.refused, name)
		}
	}
	if len(d.refused) == 0 {
		return table
	}
	out := *table
	out.Services = maps.Clone(table.Services)
	for name := range d.refused {
		delete(out.Services, name)
	}
	return &out
}

// isolate finds the Services without which the kernel would take the rest, notes
// them as refused, and reports whether there are any. changed is nil where it may be
// any Service.
//
// What is tried is tried in a network namespace that is there for that alone: the
// kernel checks everything as it does here, and nothing is changed.
func (d *Dataplane) isolate(ctx context.Context, table *service.Table, changed []service.Name) bool {
	if changed == nil {
		changed = slices.SortedFunc(maps.Keys(table.Services), service.Name.Compare)
	}
	changed = slices.DeleteFunc(slices.Clone(changed), func(n service.Name) bool { return table.Services[n] == nil })
	found := false
	for f, fam := range d.families {
		if fam == nil {
			continue
		}
		culprits(changed, func(names []service.Name) error {
			return d.try(ctx, service.Family(f), fam.kernel, table, names)
		}, func(name service.Name, err error) {
			found = true
			d.refused[name] = leftOut{table.Services[name], fmt.Sprintf("refused by the kernel: %v", err)}
		})
	}
	return found
}

// culprits tells of each of the names that fails for itself, by halving.
func culprits(names []service.Name, try func([]service.Name) error, tell func(service.Name, error)) {
	if len(names) == 0 {
		return
	}
	err := try(names)
	switch {
	case err == nil || errors.Is(err, context.Canceled) || errors.Is(err, command.ErrTooLong):
	case len(names) == 1:
		tell(names[0], err)
	default:
		culprits(names[:len(names)/2], try, tell)
		culprits(names[len(names)/2:], try, tell)
	}
}

// try writes the rules of some Services into an empty network namespace.
func (d *Dataplane) try(ctx context.Context, f service.Family, k *kernel, table *service.Table, names []service.Name) error {
	some := service.Table{Node: table.Node, Services: make(map[service.Name]*service.Resolved, len(names))}
	for _, name := range names {
		some.Services[name] = table.Services[name]
	}
	rules := d.rulesOf(f, &some)
	input := restoreInput(rules.flush(), nil, nil)
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and the namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			d.opts.Log.Warn("cannot find out which Service the kernel refuses", "error", fmt.Errorf("make a network namespace: %w", err))
			result <- nil
			return
		}
		_, err := command.Run(ctx, k.limit, input, k.restore, k.restoreArgs()...)
		result <- err
	}()
	return <-result
}
