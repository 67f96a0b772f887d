package source

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// followed runs a File source on a path and collects what it says.
type followed struct {
	t        *testing.T
	changes  chan service.Changes
	log      *safeBuffer
	services map[string]bool // as said so far
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func follow(t *testing.T, path string) *followed {
	t.Helper()
	return followFor(t, path, 0)
}

// followFor waits for patience for bad files.
func followFor(t *testing.T, path string, patience time.Duration) *followed {
	t.Helper()
	f := &followed{t: t, changes: make(chan service.Changes, 100), log: &safeBuffer{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	file := &File{Path: path, Log: slog.New(slog.NewTextHandler(f.log, nil)), startPatience: patience}
	go func() {
		defer close(done)
		file.Run(ctx, func(c service.Changes) { f.changes <- c })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

// want waits until the source has said that exactly these Services exist.
func (f *followed) want(names ...string) {
	f.t.Helper()
	deadline := time.After(3 * time.Second)
	last := slices.Sorted(maps.Keys(f.services))
	for {
		select {
		case c := <-f.changes:
			if c.Complete != (f.services == nil) {
				f.t.Errorf("complete: %t, after %v", c.Complete, f.services)
			}
			if c.Complete {
				f.services = map[string]bool{}
			}
			for _, s := range c.Services {
				f.services[s.Name.Name] = true
			}
			for _, name := range c.DeletedServices {
				delete(f.services, name.Name)
			}
			last = slices.Sorted(maps.Keys(f.services))
			if slices.Equal(last, names) {
				return
			}
		case <-deadline:
			f.t.Fatalf("Services %v, want %v; log:\n%s", last, names, f.log)
		}
	}
}

// quiet checks that nothing more is said.
func (f *followed) quiet() {
	f.t.Helper()
	select {
	case c := <-f.changes:
		f.t.Fatalf("unexpected changes %+v; log:\n%s", c, f.log)
	case <-time.After(300 * time.Millisecond):
	}
}

func (f *followed) logged(text string, times int) {
	f.t.Helper()
	deadline := time.Now().Add(2 * time.Second)
	for strings.Count(f.log.String(), text) < times && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := strings.Count(f.log.String(), text); n != times {
		f.t.Errorf("%q was logged %d times, want %d:\n%s", text, n, times, f.log)
	}
}

func manifest(names ...string) string {
	var docs []string
	for _, name := range names {
		docs = append(docs, fmt.Sprintf(minimal, name))
	}
	return strings.Join(docs, "\n---\n") + "\n"
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFileIsFollowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.yaml")
	write(t, path, manifest("a"))
	f := follow(t, path)
	f.want("a")
	write(t, path, manifest("a", "b"))
	f.want("a", "b")
	next := path + ".new"
	write(t, next, manifest("c"))
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	f.want("c")
	write(t, path, manifest("d")) // the new file is followed too
	f.want("d")
}

func TestDirectoryIsFollowed(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), manifest("a"))
	write(t, filepath.Join(dir, "notes.txt"), "not a manifest")
	write(t, filepath.Join(dir, ".hidden.yaml"), "neither: [")
	f := follow(t, dir)
	f.want("a")
	write(t, filepath.Join(dir, "b.json"), `{"apiVersion":"v1","kind":"Service","metadata":{"name":"b"},"spec":{"clusterIP":"10.96.0.2","ports":[{"port":80}]}}`)
	f.want("a", "b")
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	f.want("b")
	if err := os.Rename(filepath.Join(dir, "b.json"), filepath.Join(dir, "b.off")); err != nil {
		t.Fatal(err)
	}
	f.want()
}

// Bad input never stops what already works (P39).
func TestBadFilesKeepWhatTheyHeld(t *testing.T) {
	for name, bad := range map[string]string{
		"broken":       manifest("a") + "\n---\n{kind: [",
		"half written": "apiVersion: v1\nkind: Service\nmetadata: {name: a",
		"truncated":    "",
		"wrong field":  strings.Replace(manifest("a"), "port: 80", "port: http", 1),
		"no clusterIP": strings.Replace(manifest("a"), "clusterIP: 10.96.0.1,", "", 1),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			first := filepath.Join(dir, "1.yaml")
			write(t, first, manifest("a"))
			write(t, filepath.Join(dir, "2.yaml"), manifest("b"))
			f := follow(t, dir)
			f.want("a", "b")
			write(t, first, bad)
			f.quiet()
			f.logged("file is ignored", 1)
			write(t, filepath.Join(dir, "2.yaml"), manifest("b", "c")) // others go on
			f.want("a", "b", "c")
			os.Chtimes(first, time.Now(), time.Now().Add(time.Second)) // looked at again: said once
			f.quiet()
			f.logged("file is ignored", 1)
			write(t, first, manifest("d"))
			f.want("b", "c", "d")
			f.logged("file is readable again", 1)
		})
	}
}

func TestNothingIsSaidBeforeEveryFileWasReadOnce(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	write(t, bad, "kind: [")
	write(t, filepath.Join(dir, "good.yaml"), manifest("a"))
	f := follow(t, dir)
	f.quiet()
	f.logged("nothing is programmed", 1)
	write(t, bad, manifest("b"))
	f.want("a", "b")
}

// A directory that is empty at the start may be one where something is yet to
// be mounted; one that is emptied later says that the Services are gone.
func TestEmptyDirectoryIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	f := follow(t, dir)
	f.quiet()
	f.logged("no *.yaml, *.yml or *.json file is in it yet", 1)
	write(t, filepath.Join(dir, "a.yaml"), manifest("a"))
	f.want("a")
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	f.want()
	f.logged("no *.yaml, *.yml or *.json file is in it yet", 1)
}

func TestMissingPathIsWaitedFor(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	f := follow(t, dir)
	f.quiet()
	f.logged("cannot read manifests", 1)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "a.yaml"), manifest("a"))
	f.want("a")
	if err := os.Rename(dir, dir+".gone"); err != nil { // the source is gone, not the Services
		t.Fatal(err)
	}
	f.quiet()
}

// kubelet updates a ConfigMap volume by moving the link ..data.
func TestConfigMapVolumeIsFollowed(t *testing.T) {
	dir := t.TempDir()
	version := func(n int, names ...string) {
		t.Helper()
		data := filepath.Join(dir, fmt.Sprintf("..%d", n))
		if err := os.Mkdir(data, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(data, "services.yaml"), manifest(names...))
		link := filepath.Join(dir, "..data_tmp")
		if err := os.Symlink(filepath.Base(data), link); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version(1, "a")
	if err := os.Symlink("..data/services.yaml", filepath.Join(dir, "services.yaml")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "services.yaml")} {
		version(map[bool]int{true: 2, false: 4}[path == dir], "a")
		f := follow(t, path)
		f.want("a")
		version(map[bool]int{true: 3, false: 5}[path == dir], "a", "b")
		f.want("a", "b")
	}
}

func TestObjectInTwoFilesIsTakenOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "1.yaml"), manifest("a"))
	write(t, filepath.Join(dir, "2.yaml"), manifest("a"))
	f := follow(t, dir)
	f.want("a")
	f.logged("object is in two places", 1)
}
