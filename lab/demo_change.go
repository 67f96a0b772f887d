package lab

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nodeproxy/nodeproxy/lab/echo"
	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

const (
	// changeTimeout is how long an edit of a manifest may take to be felt.
	changeTimeout = 5 * time.Second
	// settled is how long a Pod must not have answered to count as gone: it
	// has one in four of some hundred connections a second.
	settled = 500 * time.Millisecond
)

// traffic is a stream of new connections from one place to one Service.
type traffic struct {
	stop chan struct{}
	done chan struct{}

	mu    sync.Mutex // guards what follows
	last  map[string]time.Time
	count int
	errs  []error
}

// startTraffic dials again and again until stopped.
func (d *demo) startTraffic(from string, r echo.Request) *traffic {
	t := &traffic{stop: make(chan struct{}), done: make(chan struct{}), last: map[string]time.Time{}}
	go func() {
		defer close(t.done)
		for {
			select {
			case <-t.stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			answer, err := d.lab.Dial(d.ctx, from, r.Network, r.To)
			t.mu.Lock()
			t.count++
			t.last[answer.Name] = time.Now()
			if err != nil {
				t.errs = append(t.errs, err)
			}
			t.mu.Unlock()
		}
	}()
	return t
}

// lastAnswer is when the Pod last answered, zero if it never did.
func (t *traffic) lastAnswer(pod string) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last[pod]
}

func (t *traffic) end() (count int, err error) {
	close(t.stop)
	<-t.done
	if len(t.errs) > 0 {
		err = fmt.Errorf("%d of %d failed, the first: %w", len(t.errs), t.count, t.errs[0])
	}
	return t.count, err
}

// change takes pod-a2 out of default/web and puts it back.
func (d *demo) change() {
	r := echo.Request{Network: echo.TCP, To: service(false, 10, echo.PortEcho)}
	held, err := d.connectionTo("pod-a2", r)
	if err != nil {
		d.check("open a connection to pod-a2", "", err)
		return
	}
	defer held.Close()
	t := d.startTraffic("pod-b2", r)
	time.Sleep(settled)

	took, err := d.edit("pod-a1", "pod-b1", "pod-b2").until(func(edited time.Time) (time.Duration, bool) {
		last := t.lastAnswer("pod-a2")
		return max(0, last.Sub(edited)), time.Since(later(last, edited)) > settled
	})
	result := "no new connection has reached it since"
	if took > 0 {
		result = fmt.Sprintf("the last new connection reached it %d ms later", took.Milliseconds())
	}
	d.check("pod-a2 removed from web.yaml", result, err)

	answer, err := held.Ping(d.ctx)
	d.check("a connection to it that was open before", "still works, "+answer.Name+" answered", err)

	took, err = d.edit("pod-a1", "pod-a2", "pod-b1", "pod-b2").until(func(edited time.Time) (time.Duration, bool) {
		last := t.lastAnswer("pod-a2")
		return last.Sub(edited), last.After(edited)
	})
	d.check("pod-a2 put back", fmt.Sprintf("it has connections again after %d ms", took.Milliseconds()), err)

	count, err := t.end()
	d.check(fmt.Sprintf("pod-b2 → %s all the while", r.To), fmt.Sprintf("%d connections, none failed", count), err)
}

// connectionTo opens connections from pod-b2 until one is answered by the Pod.
func (d *demo) connectionTo(pod string, r echo.Request) (*echo.RemoteConn, error) {
	remote, err := d.lab.Dialer("pod-b2")
	if err != nil {
		return nil, err
	}
	for range 100 {
		conn, err := remote.Open(d.ctx, r)
		if err != nil {
			return nil, err
		}
		answer, err := conn.Ping(d.ctx)
		if err == nil && answer.Name == pod {
			return conn, nil
		}
		if err := errors.Join(err, conn.Close()); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("none of 100 connections reached %s", pod)
}

// edited is when a manifest was written, or why it was not.
type edited struct {
	at  time.Time
	err error
}

// edit rewrites web.yaml with the given Pods as endpoints.
func (d *demo) edit(pods ...string) edited {
	var endpoints []manifest.Endpoint
	for _, pod := range pods {
		endpoints = append(endpoints, Endpoint(pod))
	}
	e := edited{at: time.Now()}
	e.err = d.lab.Apply("web.yaml", manifest.WithEndpoints(webService(), endpoints...)...)
	return e
}

// until waits for the effect of the edit and returns how long it took, as
// effect says.
func (e edited) until(effect func(time.Time) (time.Duration, bool)) (time.Duration, error) {
	if e.err != nil {
		return 0, e.err
	}
	for time.Since(e.at) < changeTimeout {
		if took, ok := effect(e.at); ok {
			return took, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return 0, fmt.Errorf("no effect within %s", changeTimeout)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
