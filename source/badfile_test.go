package source

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeproxy/nodeproxy/service"
)

// A writer that pauses where a document ends, or a line in it, is not believed
// to have removed what it has yet to write.
func TestWriterThatPausesRemovesNothing(t *testing.T) {
	whole := manifest("a", "b", "c") + "---\n" + slicesOf("a")
	for name, pauseAt := range map[string]int{
		"at the end of a document": strings.Index(whole, "\n---\n") + 1,
		"inside of a line":         strings.Index(whole, "name: b") + 3,
		"before the last endpoint": strings.Index(whole, "- {addresses: [10.0.0.2]"),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cluster.yaml")
			write(t, path, whole)
			f := follow(t, path)
			f.want("a", "b", "c")
			out, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			if _, err := out.WriteString(whole[:pauseAt]); err != nil {
				t.Fatal(err)
			}
			f.quiet() // longer than files are left alone before they are read
			if _, err := out.WriteString(whole[pauseAt:]); err != nil {
				t.Fatal(err)
			}
			f.quiet()
		})
	}
}

// slicesOf is an EndpointSlice of a Service, in block style.
func slicesOf(svc string) string {
	return "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n" +
		"metadata: {name: " + svc + "-1, labels: {kubernetes.io/service-name: " + svc + "}}\nports: [{port: 80}]\nendpoints:\n" +
		"- {addresses: [10.0.0.1]}\n- {addresses: [10.0.0.2]}\n"
}

// Some programs, tar and git among them, write a file anew by removing it first.
func TestFileThatIsRemovedAndWrittenAnewRemovesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "1.yaml")
	write(t, path, manifest("a"))
	f := follow(t, dir)
	f.want("a")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.quiet()
	write(t, path, manifest("a"))
	f.quiet()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.want()
}

// What moves to another file is taken from there at once, and is not in two.
func TestObjectThatMovesToAnotherFileIsNeverGone(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "1.yaml"), filepath.Join(dir, "2.yaml")
	write(t, one, manifest("a", "b"))
	f := follow(t, dir)
	f.want("a", "b")
	write(t, one, manifest("a"))
	write(t, two, strings.Replace(manifest("b"), "port: 80", "port: 81", 1))
	select {
	case c := <-f.changes:
		if len(c.Services) != 1 || c.Services[0].Ports[0].Port != 81 || len(c.DeletedServices) > 0 {
			t.Errorf("changes %+v, want b with port 81", c)
		}
	case <-time.After(3 * time.Second):
		t.Errorf("nothing is said of b; log:\n%s", f.log)
	}
	f.quiet()
	f.logged("object is in two places", 0)
}

// notManifests are things that a directory of manifests can hold, and that a
// reader would wait for, or be filled by.
var notManifests = map[string]struct {
	make func(path string) error
	want string
}{
	"named pipe":         {func(p string) error { return syscall.Mkfifo(p, 0o644) }, "is a named pipe: use a regular file"},
	"link to /dev/zero":  {func(p string) error { return os.Symlink("/dev/zero", p) }, "is a device: use a regular file"},
	"directory":          {func(p string) error { return os.Mkdir(p, 0o755) }, "is a directory: use a regular file"},
	"link to nothing":    {func(p string) error { return os.Symlink("nowhere", p) }, "no such file or directory"},
	"link to itself":     {func(p string) error { return os.Symlink(filepath.Base(p), p) }, "too many levels of symbolic links"},
	"file without end":   {func(p string) error { return os.Truncate(p, 1<<40) }, "the limit is 67108864: split it, or raise --max-manifest-size"},
	"file that is empty": {func(p string) error { return os.Truncate(p, 0) }, "file is empty"},
	"file that is wrong": {func(p string) error { return os.WriteFile(p, []byte("kind: [\n"), 0o644) }, "document 1"},
}

// A file that cannot be read stops none of the others, at the start or later.
func TestBadFileStopsNoOther(t *testing.T) {
	for name, c := range notManifests {
		for _, when := range []string{"at the start", "later"} {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				good, bad := filepath.Join(dir, "1.yaml"), filepath.Join(dir, "2.yaml")
				write(t, good, manifest("a"))
				spoil := func() {
					if strings.HasPrefix(name, "file") {
						write(t, bad, "")
					}
					if err := c.make(bad); err != nil {
						t.Fatal(err)
					}
				}
				if when == "at the start" {
					spoil()
				}
				f := followFor(t, dir, 500*time.Millisecond)
				f.want("a")
				if when == "later" {
					spoil()
				}
				f.logged(c.want, map[string]int{"at the start": 2, "later": 1}[when])
				write(t, good, manifest("a", "b"))
				f.want("a", "b")
			})
		}
	}
}

// Of a file that never could be read, what can be is used after a while, and the
// whole when it is fixed.
func TestOneBadDocumentStopsNoOtherOfANewFile(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "1.yaml"), "kind: [\n---\n"+manifest("a")+"---\n{kind: Service}\n---\n"+manifest("b"))
	f := followFor(t, dir, 300*time.Millisecond)
	f.want("a", "b")
	f.logged("(and 1 more)", 2)
	write(t, filepath.Join(dir, "2.yaml"), manifest("c")+"---\nkind: [\n")
	f.want("a", "b", "c")
	write(t, filepath.Join(dir, "2.yaml"), manifest("c", "d"))
	f.want("a", "b", "c", "d")
}

// What was read once is used before what can be read of a newer file, whatever
// is wrong with that.
func TestBadDocumentKeepsTheWholeOfAKnownFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "1.yaml")
	write(t, path, manifest("a", "b"))
	f := followFor(t, path, 100*time.Millisecond)
	f.want("a", "b")
	write(t, path, manifest("a", "c")+"---\nkind: [\n")
	f.quiet()
}

// The end of the source does not wait for a file.
func TestSourceEndsWithANamedPipe(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "1.yaml"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	log := &safeBuffer{}
	go func() {
		file := &File{Path: dir, Log: slog.New(slog.NewTextHandler(log, nil))}
		ended <- file.Run(ctx, func(service.Changes) {})
	}()
	(&followed{t: t, log: log}).logged("named pipe", 1)
	cancel()
	select {
	case <-ended:
	case <-time.After(3 * time.Second):
		t.Fatal("the source has not ended")
	}
}

func TestSizeOfAManifestIsLimited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "1.yaml")
	write(t, path, manifest("a"))
	if _, err := ReadFile(path, int64(len(manifest("a")))); err != nil {
		t.Error(err)
	}
	_, err := ReadFile(path, int64(len(manifest("a")))-1)
	if want := fmt.Sprintf("has %d bytes, and the limit is %d", len(manifest("a")), len(manifest("a"))-1); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestNodeThatIsNotInTheManifestsIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "1.yaml")
	write(t, path, "{apiVersion: v1, kind: Node, metadata: {name: node-a}}\n")
	log := &safeBuffer{}
	f := &File{Path: path, NodeName: "nosuch", Log: slog.New(slog.NewTextHandler(log, nil))}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan service.Changes, 10)
	done := make(chan struct{})
	go func() { f.Run(ctx, func(c service.Changes) { got <- c }); close(done) }()
	defer func() { cancel(); <-done }()
	<-got
	(&followed{t: t, log: log}).logged("Node nosuch is not in the manifests (node-a are)", 1)
	write(t, path, "{apiVersion: v1, kind: Node, metadata: {name: nosuch}}\n")
	<-got
	for deadline := time.Now().Add(3 * time.Second); len(f.Health().Ignored) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("health still says %+v", f.Health())
		}
	}
}
