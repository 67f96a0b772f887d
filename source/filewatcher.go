package source

import (
	"log/slog"
	"time"

	"github.com/fsnotify/fsnotify"
)

// FileWatcher reports changes in directories. Where no instance of inotify is free it reports
// nothing: then its user reads the files each second (Period). It is not safe for concurrent use.
type FileWatcher struct {
	Events <-chan fsnotify.Event
	Errors <-chan error
	inner  *fsnotify.Watcher // nil where there is none
}

// NewFileWatcher makes a watcher for the file or directory at path. If inotify refuses, it
// logs why.
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
