package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
)

// PathWatch is where events are streamed, one JSON object a line.
const PathWatch = "/v1/watch"

// hub shares the one source of events that a mode has among those who watch. It
// runs only while somebody does.
type hub struct {
	watch func(ctx context.Context, ready func(), emit func(view.Event)) error

	mu      sync.Mutex
	all     map[chan view.Event]struct{}
	stop    context.CancelFunc
	running *run
}

// run is one time that the source runs; err is set before done is closed.
type run struct {
	ready, done chan struct{}
	err         error
}

// slack is how many events may wait for a watcher that is slow; what comes then
// is left out.
const slack = 1024

// subscribe joins the watchers; leave has to be called.
func (h *hub) subscribe() (events chan view.Event, r *run, leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = map[chan view.Event]struct{}{}
	}
	events = make(chan view.Event, slack)
	h.all[events] = struct{}{}
	if len(h.all) == 1 {
		h.start(h.running)
	}
	return events, h.running, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if delete(h.all, events); len(h.all) == 0 {
			h.stop()
		}
	}
}

// start runs the source once the run before has ended.
func (h *hub) start(before *run) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &run{ready: make(chan struct{}), done: make(chan struct{})}
	h.running, h.stop = r, cancel
	go func() {
		defer close(r.done)
		if before != nil {
			<-before.done
		}
		r.err = h.watch(ctx, func() { close(r.ready) }, h.emit)
	}()
}

func (h *hub) emit(e view.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.all {
		select {
		case c <- e:
		default:
		}
	}
}

// ServeHTTP streams events until the client goes.
func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	events, run, leave := h.subscribe()
	defer leave()
	select {
	case <-run.ready:
	case <-run.done:
		http.Error(w, run.err.Error(), http.StatusServiceUnavailable)
		return
	case <-r.Context().Done():
		return
	}
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	lines := json.NewEncoder(w)
	for out.Flush() == nil {
		select {
		case e := <-events:
			if lines.Encode(e) != nil {
				return
			}
		case <-run.done:
			return
		case <-r.Context().Done():
			return
		}
	}
}
