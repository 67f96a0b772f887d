// Package dataplane holds the contract that each mode meets, and the loop that
// drives one: coalesce, rate limit, back off, compare with the kernel now and
// then.
package dataplane

import (
	"context"

	"github.com/nodeproxy/nodeproxy/service"
)

// Dataplane makes the kernel translate what a [service.Table] says.
// Implementations need not be safe for concurrent use.
type Dataplane interface {
	// Sync makes the kernel's state equal the table's.
	//
	// changed names the Services that may differ from the last successful
	// Sync, those that are gone from the table included; the work done is in
	// proportion to them, not to the table. changed == nil means that anything
	// may differ: the kernel's state is read and compared with the whole table,
	// and what is ours and not wanted is removed. NodeFacts may have changed
	// only if changed is nil.
	//
	// After an error the kernel's state is the old one, the new one, or a mix
	// in which every packet still sees the old or the new set of backends; the
	// caller passes nil at the next Sync.
	Sync(ctx context.Context, table *service.Table, changed []service.Name) error

	// Close releases what the process holds. The kernel goes on translating.
	Close() error
}
