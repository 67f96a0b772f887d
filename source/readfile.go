package source

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// DefaultMaxFile is the size in bytes above which a manifest is not read: decoded
// objects take several times as much memory.
const DefaultMaxFile = 64 << 20

// stamp changes when a file is written or replaced.
type stamp struct {
	size    int64
	mtime   time.Time
	dev     uint64
	inode   uint64
	pointed string // what a link leads to
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

// stillAt is when a file that does not change will have stood still for long
// enough to be believed.
func (f *file) stillAt() time.Time {
	since := f.since
	if m := f.stamp.mtime; !m.IsZero() && m.Before(since) {
		since = m
	}
	return since.Add(standStill)
}

// cutShort reports whether a file was truncated in place, as a program does that
// writes it anew from its beginning.
func (f *file) cutShort() bool {
	return f.good != nil && f.stamp.dev == f.taken.dev && f.stamp.inode == f.taken.inode && f.stamp.size < f.taken.size
}

// Manifests returns the files that [File] reads for a path, sorted: the path, or
// what is directly in it if it is a directory.
func Manifests(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".yaml", ".yml", ".json":
			if !strings.HasPrefix(e.Name(), ".") {
				names = append(names, filepath.Join(path, e.Name()))
			}
		}
	}
	return names, nil
}

// ReadFile reads a manifest as [File] does: only a regular file, also through a
// link, of at most limit bytes ([DefaultMaxFile] where it is 0). It never waits
// for a writer, as reading a named pipe would.
func ReadFile(name string, limit int64) ([]byte, error) {
	if limit == 0 {
		limit = DefaultMaxFile
	}
	return readRegular(name, limit)
}

func readRegular(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name) // before it is opened, which can do things to a device
	if err == nil {
		err = acceptable(name, info, limit)
	}
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err == nil {
		err = acceptable(name, info, limit)
	}
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = tooLarge(name, int64(len(text)), limit)
	}
	return text, err
}

func acceptable(name string, info fs.FileInfo, limit int64) error {
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is %s: use a regular file", name, kindOf(info.Mode()))
	case info.Size() > limit:
		return tooLarge(name, info.Size(), limit)
	}
	return nil
}

func tooLarge(name string, size, limit int64) error {
	return fmt.Errorf("%s has %d bytes, and the limit is %d: split it, or raise --max-manifest-size", name, size, limit)
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a device"
}

func isLink(name string) bool {
	info, err := os.Lstat(name)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

// ended reports whether text may be all that its writer means to write: it ends
// with the end of a line, or is JSON that is closed.
func ended(text []byte) bool {
	return len(text) == 0 || text[len(text)-1] == '\n' ||
		bytes.HasPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte("{")) && isJSON(text)
}

// sooner returns the earlier of two times, of which zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
