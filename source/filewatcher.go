package source

import (
	"log/slog"
	"time"

	"github.com/fsnotify/fsnotify"
)

// FileWatcher tells of changes in directories. On a node where others hold all of inotify's
// instances it tells nothing, and who waits for it looks by itself now and then.
type FileWatcher struct {
	Events <-chan fsnotify.Event
	Errors <-chan error
	inner  *fsnotify.Watcher // nil where there is none
}

// NewFileWatcher makes a watcher for what is at path, and logs why there is none.
func NewFileWatcher(path string, log *slog.Logger) *FileWatcher {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("no events of files; they are looked at each second. Raise fs.inotify.max_user_instances, or the limit of open files",
			"path", path, "error", err)
		return &FileWatcher{}
	}
	return &FileWatcher{Events: w.Events, Errors: w.Errors, inner: w}
}

// Period is how often to look without being told to: as often as usual, or each second
// where nothing is told.
func (w *FileWatcher) Period(usual time.Duration) time.Duration {
	if w.inner == nil {
		return min(usual, time.Second)
	}
	return usual
}

// Add asks for events of a directory; twice does no harm.
func (w *FileWatcher) Add(dir string) error {
	if w.inner == nil {
		return nil
	}
	return w.inner.Add(dir)
}

// Close ends the watch.
func (w *FileWatcher) Close() {
	if w.inner != nil {
		_ = w.inner.Close()
	}
}
