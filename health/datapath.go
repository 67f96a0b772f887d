package health

import (
	"sync"
	"time"
)

// DataPath remembers what probes of the data path found. A failure counts only
// when it has lasted: what is being mended is not worth a restart. It is safe
// for concurrent use.
type DataPath struct {
	limit time.Duration

	mu    sync.Mutex
	err   error
	since time.Time // of the failures that have not ended
}

// NewDataPath returns a DataPath that is well at first, and then for as long as
// probes have not failed for limit on end.
func NewDataPath(limit time.Duration) *DataPath { return &DataPath{limit: limit} }

// Found takes in what a probe found; nil if all was well. It tells whether that
// is a change.
func (d *DataPath) Found(now time.Time, err error) (changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed = (err == nil) != (d.err == nil)
	if changed {
		d.since = now
	}
	d.err = err
	return changed
}

// Err is what is wrong with the data path, for long enough.
func (d *DataPath) Err(now time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil && now.Sub(d.since) >= d.limit {
		return d.err
	}
	return nil
}
