package health

import (
	"sync"
	"time"
)

// SyncHealth tells whether the kernel is kept up to date: it is not when a
// change has been waiting for longer than a limit. It is safe for concurrent
// use.
type SyncHealth struct {
	limit time.Duration

	mu      sync.Mutex
	updated time.Time // last successful sync
	waiting time.Time // since when something is queued; zero if nothing is
}

// NewSyncHealth returns a SyncHealth that is well at first. kube-proxy's limit
// is twice the sync period.
func NewSyncHealth(limit time.Duration) *SyncHealth { return &SyncHealth{limit: limit} }

// Queued says that a sync was asked for; it starts the clock if it is not
// running.
func (h *SyncHealth) Queued(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting.IsZero() {
		h.waiting = now
	}
}

// Synced says that a sync has succeeded.
func (h *SyncHealth) Synced(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.updated, h.waiting = now, time.Time{}
}

// Healthy reports whether nothing has waited for too long, and when the kernel
// was last updated.
func (h *SyncHealth) Healthy(now time.Time) (healthy bool, updated time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting.IsZero() || now.Sub(h.waiting) < h.limit, h.updated
}
