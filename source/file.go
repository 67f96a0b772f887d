package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/nodeproxy/nodeproxy/service"
)

const (
	// settle is how long files must be left alone before they are read:
	// editors and copies write in pieces.
	settle = 20 * time.Millisecond
	// maxSettle bounds that for a directory in which something is always
	// being written.
	maxSettle = 500 * time.Millisecond
	// rescan is how often files are looked at without being told to: a link
	// may lead to where no watch reaches.
	rescan = 5 * time.Second
)

// File reads Kubernetes manifests from a file, or from the *.yaml, *.yml and
// *.json files of a directory, and follows their changes, also through rename
// and the symbolic links of ConfigMap volumes.
//
// A file that can not be read, or is empty, keeps what it held before; each
// complaint is logged once. Until every file could be read once, nothing is
// handed on: what the kernel has from an earlier run stays.
type File struct {
	Path string
	Log  *slog.Logger

	files map[string]*file
	begun bool            // something was handed on
	twice map[string]bool // what was said of objects that are in two files
	given fileSet         // what was handed on
}

// file is what is known of one file.
type file struct {
	stamp    stamp
	good     *contents // last readable content; nil if there never was any
	complain string    // what is wrong now; empty if nothing is
	warned   string    // warnings that were logged
}

// stamp changes when a file is written or replaced.
type stamp struct {
	size    int64
	mtime   time.Time
	dev     uint64
	inode   uint64
	pointed string // what a link leads to
}

// Run hands the whole content to emit at once, and then what changes, until ctx
// ends, whose error it returns. emit is called from one goroutine.
func (f *File) Run(ctx context.Context, emit func(service.Changes)) error {
	f.files, f.twice = map[string]*file{}, map[string]bool{}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.Path, err)
	}
	defer w.Close()
	ticker := time.NewTicker(rescan)
	defer ticker.Stop()
	missing := ""
	for {
		f.watch(w)
		changed, err := f.load()
		switch {
		case err != nil && err.Error() != missing:
			missing = err.Error()
			f.Log.Error("manifests can not be read; what works is kept", "path", f.Path, "error", err)
		case err == nil:
			missing = ""
			if changed && f.complete() {
				f.hand(emit)
			}
		}
		if err := f.wait(ctx, w, ticker.C); err != nil {
			return err
		}
	}
}

// hand tells emit what differs from what it was told before.
func (f *File) hand(emit func(service.Changes)) {
	now := fileSet{}
	for name, known := range f.files {
		now[name] = known.good
	}
	c := now.since(f.given, f.sayTwice)
	c.Complete = !f.begun
	f.begun, f.given = true, now
	emit(c)
}

func (f *File) sayTwice(object any, second string) {
	key := fmt.Sprint(object, " in ", second)
	if !f.twice[key] {
		f.twice[key] = true
		f.Log.Warn("object is in two places; the file that sorts first counts", "object", fmt.Sprint(object), "second", second)
	}
}

// watch asks for events of the path and of the directory that holds it.
// Adding a watch twice does no harm, and finds a directory that came back.
func (f *File) watch(w *fsnotify.Watcher) {
	for _, p := range []string{filepath.Dir(f.Path), f.Path} {
		if info, err := os.Stat(p); err != nil || !info.IsDir() {
			continue
		}
		if err := w.Add(p); err != nil {
			f.Log.Debug("no watch; the file is looked at now and then", "path", p, "error", err)
		}
	}
}

// wait returns when something may have changed and then stood still.
func (f *File) wait(ctx context.Context, w *fsnotify.Watcher, tick <-chan time.Time) error {
	var quiet, limit <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick:
			return nil
		case <-quiet:
			return nil
		case <-limit:
			return nil
		case err := <-w.Errors:
			f.Log.Debug("watch", "path", f.Path, "error", err)
			return nil
		case ev := <-w.Events:
			if known := f.files[ev.Name]; known != nil { // two writes may share a time stamp
				known.stamp = stamp{}
			}
			quiet = time.After(settle)
			if limit == nil {
				limit = time.After(maxSettle)
			}
		}
	}
}

// load reads what changed since the last call. An error means that the path
// itself is gone.
func (f *File) load() (changed bool, err error) {
	names, err := f.list()
	if err != nil {
		return false, err
	}
	if len(names) == 0 && !f.begun { // not yet mounted, perhaps; later on, it means that all were removed
		return false, errors.New("no *.yaml, *.yml or *.json file is in it yet")
	}
	present := map[string]bool{}
	for _, name := range names {
		present[name] = true
		changed = f.read(name) || changed
	}
	for name := range f.files {
		if !present[name] {
			f.Log.Info("file is gone", "file", name)
			delete(f.files, name)
			changed = true
		}
	}
	return changed, nil
}

// list returns the files to be read, sorted.
func (f *File) list() ([]string, error) {
	info, err := os.Stat(f.Path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{f.Path}, nil
	}
	entries, err := os.ReadDir(f.Path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".yaml", ".yml", ".json":
			if !strings.HasPrefix(e.Name(), ".") {
				names = append(names, filepath.Join(f.Path, e.Name()))
			}
		}
	}
	return names, nil
}

// read takes in one file and reports whether what it holds changed.
func (f *File) read(name string) bool {
	now, err := stampOf(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false // between list and here; the next look will tell
	}
	known := f.files[name]
	if known == nil {
		known = &file{}
		f.files[name] = known
	}
	if err == nil && now == known.stamp {
		return false
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(name)
	}
	var next *objects
	if err == nil {
		next, err = decode(data)
	}
	if err == nil && len(bytes.TrimSpace(data)) == 0 {
		err = errors.New("file is empty (to remove its objects, remove the file)")
	}
	known.stamp = now
	if err != nil {
		f.complain(name, known, err)
		return false
	}
	if known.complain != "" {
		f.Log.Info("file is readable again", "file", name)
		known.complain = ""
	}
	f.report(name, known, next)
	known.good = contentsOf(next, known.good, func(object any) { f.sayTwice(object, name) })
	return true
}

// complain reports what is wrong with a file, once.
func (f *File) complain(name string, known *file, err error) {
	if known.complain == err.Error() {
		return
	}
	known.complain = err.Error()
	if known.good != nil {
		f.Log.Error("file is ignored; the objects that it held are kept", "file", name, "error", err)
	} else {
		f.Log.Error("file can not be read; nothing is programmed before it is mended or removed", "file", name, "error", err)
	}
}

// report logs what of a readable file is not used.
func (f *File) report(name string, known *file, next *objects) {
	text := strings.Join(next.warnings, "; ")
	for _, kind := range slices.Sorted(maps.Keys(next.ignored)) {
		text += fmt.Sprintf("; %d of %s", next.ignored[kind], kind)
	}
	if text != known.warned && text != "" {
		f.Log.Warn("file holds what is not used", "file", name, "ignored", strings.TrimPrefix(text, "; "))
	}
	known.warned = text
}

// complete reports whether every file was readable at least once.
func (f *File) complete() bool {
	for _, known := range f.files {
		if known.good == nil {
			return false
		}
	}
	return true
}

func stampOf(name string) (stamp, error) {
	info, err := os.Stat(name)
	if err != nil {
		return stamp{}, err
	}
	s := stamp{size: info.Size(), mtime: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.dev, s.inode = uint64(sys.Dev), sys.Ino
	}
	s.pointed, _ = filepath.EvalSymlinks(name)
	return s, nil
}
