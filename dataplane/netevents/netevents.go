// Package netevents tells that the interfaces, addresses or routes of a network namespace
// may have changed, whatever becomes of the netlink sockets that say so.
package netevents

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// again is the wait before a subscription that failed is tried again.
const again = 100 * time.Millisecond

// Follower follows one network namespace. Its fields must not be changed once it
// is used.
type Follower struct {
	Namespace *netns.NsHandle // nil for the calling thread's
	Log       *slog.Logger

	// receiveBuffer is the size of a socket's buffer in bytes; 0 for the kernel's
	// default.
	receiveBuffer int
}

// Links returns a channel that has an element when interfaces may have changed,
// until ctx ends. The receiver has to look at all of them then.
//
// A socket that fell behind (ENOBUFS, netlink(7)) has lost messages: it is
// replaced by a new one, after which the channel has an element too.
func (f *Follower) Links(ctx context.Context) (<-chan struct{}, error) {
	return follow(ctx, f.Log, "interfaces", all[netlink.LinkUpdate], func(ch chan<- netlink.LinkUpdate, done <-chan struct{}, failed func(error)) error {
		return netlink.LinkSubscribeWithOptions(ch, done, netlink.LinkSubscribeOptions{Namespace: f.Namespace, ErrorCallback: failed, ReceiveBufferSize: f.receiveBuffer})
	})
}

// Addresses is as Links, for the addresses on interfaces.
func (f *Follower) Addresses(ctx context.Context) (<-chan struct{}, error) {
	return follow(ctx, f.Log, "addresses", all[netlink.AddrUpdate], func(ch chan<- netlink.AddrUpdate, done <-chan struct{}, failed func(error)) error {
		return netlink.AddrSubscribeWithOptions(ch, done, netlink.AddrSubscribeOptions{Namespace: f.Namespace, ErrorCallback: failed, ReceiveBufferSize: f.receiveBuffer})
	})
}

// Routes is as Links, for routes. filter makes, for each socket that is opened, what
// says of its messages one after another whether they are worth telling.
func (f *Follower) Routes(ctx context.Context, filter func() func(*netlink.RouteUpdate) bool) (<-chan struct{}, error) {
	return follow(ctx, f.Log, "routes", filter, func(ch chan<- netlink.RouteUpdate, done <-chan struct{}, failed func(error)) error {
		return netlink.RouteSubscribeWithOptions(ch, done, netlink.RouteSubscribeOptions{Namespace: f.Namespace, ErrorCallback: failed, ReceiveBufferSize: f.receiveBuffer})
	})
}

// all is a filter that tells of every message.
func all[T any]() func(*T) bool { return func(*T) bool { return true } }

// subscribe opens a socket whose messages go to ch, which is closed when the
// socket fails. The socket is closed with done.
type subscribe[T any] func(ch chan<- T, done <-chan struct{}, failed func(error)) error

func follow[T any](ctx context.Context, log *slog.Logger, what string, filter func() func(*T) bool, open subscribe[T]) (<-chan struct{}, error) {
	changed := make(chan struct{}, 1)
	begin := func() (messages chan T, end func(), err error) {
		messages, done := make(chan T, 64), make(chan struct{})
		failed := func(err error) {
			if ctx.Err() == nil { // closing ends the subscription with an error
				log.Debug("netlink socket failed; it is replaced", "for", what, "error", err)
			}
		}
		if err := open(messages, done, failed); err != nil {
			return nil, nil, fmt.Errorf("subscribe to %s: %w", what, err)
		}
		return messages, func() { close(done) }, nil
	}
	messages, end, err := begin()
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			pass(ctx, messages, filter(), changed)
			end()
			if messages, end = retry(ctx, log, begin); messages == nil {
				return
			}
			tell(changed) // of what was lost
		}
	}()
	return changed, nil
}

// pass tells of each message that is worth it, until there will be no more or ctx ends.
func pass[T any](ctx context.Context, messages <-chan T, worth func(*T) bool, changed chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-messages:
			if !ok {
				return
			}
			if worth(&m) {
				tell(changed)
			}
		}
	}
}

// retry begins anew until that succeeds; nil if ctx ends.
func retry[T any](ctx context.Context, log *slog.Logger, begin func() (chan T, func(), error)) (chan T, func()) {
	said := false
	for {
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(again):
		}
		messages, end, err := begin()
		if err == nil {
			return messages, end
		}
		if !said {
			said = true
			log.Warn("changes of the network are noticed late", "error", err)
		}
	}
}

func tell(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default: // one is there already
	}
}
