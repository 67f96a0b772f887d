package source

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

const (
	// settle is how long files must be left alone before they are read:
	// editors and copies write in pieces.
	settle = 20 * time.Millisecond
	// maxSettle bounds that for a directory in which something is always
	// being written.
	maxSettle = 500 * time.Millisecond
	// standStill is how long a file must have been the same before it is believed
	// in what half a file would say too: that objects are gone, or that text which
	// was cut short is all there is.
	standStill = time.Second
	// startPatience is how long a file that cannot be read holds the others back
	// at the start, and how long one that never could be read may be fixed before
	// the documents in it that can be read count without the others.
	startPatience = 10 * time.Second
	// rescan is how often files are looked at without being told to: a link
	// may lead to where no watch reaches.
	rescan = 5 * time.Second
)

// File reads Kubernetes manifests from a file, or from the *.yaml, *.yml and
// *.json files of a directory, and follows their changes, also through rename
// and the symbolic links of ConfigMap volumes.
//
// One bad file never stops the others. A file that cannot be read, is empty, is
// larger than MaxSize or is no regular file keeps what it held before; each
// complaint is logged once. At the start such a file holds the others back for
// [startPatience]: what the kernel has from an earlier run stays so long. After
// that the documents that can be read are used, and nothing else of it.
//
// What half of a file would say as well is believed only when the file has stood
// still for a second ([standStill]): that an object is gone, and that a file which
// was cut short in place, or that does not end with a line's end, is complete.
type File struct {
	Path    string
	MaxSize int64 // in bytes, of one file; 0 for [DefaultMaxFile]
	Log     *slog.Logger
	// NodeName, if set, is the Node that is warned about where manifests hold Nodes
	// and this one is not among them.
	NodeName string

	startPatience time.Duration // for tests; 0 for the constant

	files   map[string]*file
	started time.Time
	begun   bool            // something was handed on
	twice   map[string]bool // what was said of objects that are in two files
	given   fileSet         // what was handed on
	health  atomic.Pointer[Health]
	strange string // what is wrong with NodeName
}

// file is what is known of one file.
type file struct {
	stamp    stamp     // as it was last seen
	since    time.Time // when it was first seen with that stamp
	fresh    bool      // what it holds with that stamp was taken in
	taken    stamp     // as it was when its content was last taken in
	good     *contents // last readable content; nil if there never was any
	held     *contents // objects that are gone from good, not yet confirmed
	part     *contents // what can be read of a file that never could be as a whole
	complain string    // what is wrong now; empty if nothing is
	warned   string    // warnings that were logged
	notes    []string  // those warnings, one by one
	touched  bool      // an event told of it since it was last looked at
	gone     bool      // not there any more; good is held until that is confirmed
}

// Run hands the whole content to emit at once, and then what changes, until ctx
// ends, whose error it returns. emit is called from one goroutine.
func (f *File) Run(ctx context.Context, emit func(service.Changes)) error {
	f.files, f.twice, f.started = map[string]*file{}, map[string]bool{}, time.Now()
	w := NewFileWatcher(f.Path, f.Log)
	defer w.Close()
	ticker := time.NewTicker(w.Period(rescan))
	defer ticker.Stop()
	missing := ""
	for {
		f.watch(w)
		next, err := f.load(time.Now())
		if errors.Is(err, fs.ErrNotExist) {
			err = f.absent(err)
		}
		switch {
		case err != nil && err.Error() != missing:
			missing = err.Error()
			f.Log.Error("cannot read manifests; the current rules are kept", "path", f.Path, "error", err)
		case err == nil:
			missing = ""
			f.hand(emit)
		}
		f.noteHealth(missing)
		if err := f.wait(ctx, w, ticker.C, next); err != nil {
			return err
		}
	}
}

// absent says what it means that the path is not there.
func (f *File) absent(err error) error {
	if f.begun {
		return &shortError{fmt.Sprintf("%s does not exist any more; current rules are kept", f.Path), err}
	}
	return &shortError{fmt.Sprintf("waiting for %s, which does not exist; no Service is served until then", f.Path), err}
}

// hand tells emit what differs from what it was told before.
func (f *File) hand(emit func(service.Changes)) {
	if !f.begun && !f.complete(time.Now()) {
		return
	}
	now := fileSet{}
	for name, known := range f.files {
		if known.good != nil {
			now[name] = known.good
		}
		if known.held != nil {
			now[heldBy(name)] = known.held
		}
	}
	if f.begun && maps.Equal(now, f.given) {
		return
	}
	c := now.since(f.given, f.sayTwice)
	c.Complete = !f.begun
	f.begun, f.given = true, now
	f.checkNode()
	if c.Complete || !c.Empty() {
		emit(c)
	}
}

// sayTwice warns of an object that is in two files, or twice in one.
func (f *File) sayTwice(object any, first, second string) {
	known := f.files[first]
	if isHeld(second) || known != nil && !known.fresh { // it may just be moving from one to the other
		return
	}
	key := fmt.Sprint(object, " in ", second)
	if !f.twice[key] {
		f.twice[key] = true
		f.Log.Warn("object is in two places; the file that sorts first counts", "object", fmt.Sprint(object), "second", second)
	}
}

// watch asks for events of the path and of the directory that holds it.
// Adding a watch twice does no harm, and finds a directory that came back.
func (f *File) watch(w *FileWatcher) {
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
// next is when something is to be looked at without an event, or zero.
func (f *File) wait(ctx context.Context, w *FileWatcher, tick <-chan time.Time, next time.Time) error {
	var quiet, limit, due <-chan time.Time
	if !next.IsZero() {
		due = time.After(time.Until(next))
	}
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
		case <-due:
			return nil
		case err := <-w.Errors:
			f.Log.Debug("watch", "path", f.Path, "error", err)
			return nil
		case ev := <-w.Events:
			if known := f.files[ev.Name]; known != nil { // two writes may share a time stamp
				known.touched = true
			}
			quiet = time.After(settle)
			if limit == nil {
				limit = time.After(maxSettle)
			}
		}
	}
}

// load reads what changed since the last call, and returns when to look again
// where no event will tell; zero for never. An error means that the path itself
// is gone.
func (f *File) load(now time.Time) (next time.Time, err error) {
	names, err := Manifests(f.Path)
	if err != nil {
		return next, err
	}
	if len(names) == 0 && !f.begun { // not yet mounted, perhaps; later on, it means that all were removed
		return next, errors.New("no *.yaml, *.yml or *.json file is in it yet")
	}
	present := map[string]bool{}
	for _, name := range names {
		present[name] = true
		next = sooner(next, f.look(name, now))
	}
	for name, known := range f.files {
		if !present[name] {
			next = sooner(next, f.lookGone(name, known, now))
		}
	}
	return next, nil
}

// look takes in one file, and returns when to look at it again; zero for when it
// changes.
func (f *File) look(name string, now time.Time) time.Time {
	seen, err := stampOf(name)
	if errors.Is(err, fs.ErrNotExist) && !isLink(name) {
		return time.Time{} // between list and here; the next look will tell
	}
	known := f.files[name]
	if known == nil {
		known = &file{}
		f.files[name] = known
	}
	if seen != known.stamp || known.since.IsZero() || known.touched {
		known.stamp, known.since, known.touched, known.fresh = seen, now, false, false
	}
	still := known.stillAt()
	switch {
	case err != nil:
		f.complain(name, known, err)
		return f.confirm(name, known, still, now)
	case known.fresh && !known.gone:
		return f.confirm(name, known, still, now)
	case known.cutShort() && now.Before(still):
		return still
	}
	text, err := readRegular(name, cmp.Or(f.MaxSize, DefaultMaxFile))
	if err == nil && !ended(text) && now.Before(still) {
		return still
	}
	if after, _ := stampOf(name); after != seen {
		return now.Add(maxSettle) // written while it was read
	}
	known.taken, known.fresh, known.gone = seen, true, false
	f.take(name, known, text, err)
	return f.confirm(name, known, still, now)
}

// take makes what is read the content of a file.
func (f *File) take(name string, known *file, text []byte, err error) {
	var next *objects
	if err == nil {
		next, err = decode(text)
	}
	if err == nil && len(bytes.TrimSpace(text)) == 0 {
		err = errors.New("file is empty (to remove its objects, remove the file)")
	}
	twice := func(object any) { f.sayTwice(object, name, name) }
	if err != nil {
		f.complain(name, known, err)
		if known.part = nil; next != nil && known.good == nil {
			known.part = contentsOf(next, nil, twice)
		}
		return
	}
	if known.complain != "" {
		f.Log.Info("file is readable again", "file", name)
		known.complain = ""
	}
	f.report(name, known, next)
	before := known.good
	known.good, known.part = contentsOf(next, before, twice), nil
	known.held = merge(before, known.held).without(known.good)
}

// confirm believes what a file that has stood still says, and returns when it
// will have, if that is yet to be waited for.
func (f *File) confirm(name string, known *file, still, now time.Time) time.Time {
	switch {
	case known.held != nil && now.Before(still):
		return still
	case known.held != nil:
		known.held = nil
	case known.good == nil && !f.begun:
		return f.started.Add(f.patience())
	case known.part != nil:
		if end := known.since.Add(f.patience()); now.Before(end) {
			return end
		}
		f.takePart(name, known)
	}
	return time.Time{}
}

// takePart uses what can be read of a file that never could be as a whole.
func (f *File) takePart(name string, known *file) {
	known.good, known.part = known.part, nil
	f.Log.Error("file is used without what cannot be read in it", "file", name, "error", known.complain)
}

func (f *File) patience() time.Duration { return cmp.Or(f.startPatience, startPatience) }

// lookGone takes in that a file is not there, and forgets it once it has been so
// for a while: some programs write a file anew by removing it first.
func (f *File) lookGone(name string, known *file, now time.Time) time.Time {
	if !known.gone {
		known.gone, known.since, known.stamp = true, now, stamp{}
	}
	if still := known.since.Add(standStill); known.good != nil && now.Before(still) {
		return still
	}
	f.Log.Info("file is gone", "file", name)
	delete(f.files, name)
	return time.Time{}
}

// complain reports what is wrong with a file, once.
func (f *File) complain(name string, known *file, err error) {
	if known.complain == err.Error() {
		return
	}
	known.complain = err.Error()
	if known.good != nil {
		f.Log.Error("file is ignored; the objects that it held are kept", "file", name, "error", err)
	} else if !f.begun {
		f.Log.Error("file cannot be read; nothing is programmed before it is fixed or removed", "file", name, "error", err, "patience", f.patience())
	} else {
		f.Log.Error("file is ignored", "file", name, "error", err)
	}
}

// report logs what of a readable file is not used.
func (f *File) report(name string, known *file, next *objects) {
	known.notes = next.notes()
	text := strings.Join(known.notes, "; ")
	if text != known.warned && text != "" {
		f.Log.Warn("ignoring objects, or parts of them, that nodeproxy does not use", "file", name, "ignored", text)
	}
	known.warned = text
}

// complete reports whether every file was readable at least once, or was waited
// for long enough.
func (f *File) complete(now time.Time) bool {
	if len(f.files) == 0 {
		return false
	}
	waited := !now.Before(f.started.Add(f.patience()))
	for name, known := range f.files {
		switch {
		case known.good != nil:
		case !waited:
			return false
		case known.part != nil:
			f.takePart(name, known)
		default:
			f.Log.Error("going on without a file that cannot be read", "file", name, "error", known.complain)
		}
	}
	return true
}
