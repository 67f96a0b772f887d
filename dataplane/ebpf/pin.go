package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// layoutVersion is that of bpf/types.h and maps.h. Pins of another version are
// removed once ours are filled and attached.
const layoutVersion = "v9"

const defaultBPFFS = "/sys/fs/bpf"

// pins are the directories of one instance.
type pins struct {
	root  string // PinRoot/instance
	maps  string
	links string
}

func pinsOf(o *Options) pins {
	root := filepath.Join(o.PinRoot, o.Instance)
	return pins{root, filepath.Join(root, layoutVersion, "maps"), filepath.Join(root, layoutVersion, "links")}
}

func (p pins) create() error {
	if err := ensureBPFFS(p.root); err != nil {
		return err
	}
	for _, dir := range []string{p.maps, p.links} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("pins: %w", err)
		}
	}
	return nil
}

// ensureBPFFS mounts the BPF file system at its usual place if dir is to be
// there and it is missing.
func ensureBPFFS(dir string) error {
	at := dir
	for {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		if err == nil && int64(st.Type) == unix.BPF_FS_MAGIC {
			return nil
		}
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || at == "/" {
			return fmt.Errorf("pins: stat %s: %w", at, err)
		}
		at = filepath.Dir(at)
	}
	if !strings.HasPrefix(dir, defaultBPFFS+"/") {
		return fmt.Errorf("pins: %s is not in a BPF file system", dir)
	}
	if err := unix.Mount("bpf", defaultBPFFS, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("pins: mount the BPF file system on %s: %w", defaultBPFFS, err)
	}
	return nil
}

// netnsCookie returns the cookie of the calling thread's network namespace.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("network namespace: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("network namespace: read its cookie: %w", err)
	}
	return cookie, nil
}

// takeOver gives a pinned link the new program, and tells whether there was one
// that is still attached to what attached says. A dead one is removed.
func takeOver(path string, prog *ebpf.Program, attached func(*link.Info) bool) (bool, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("pinned link %s: %w", path, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("pinned link %s: %w", path, err)
	}
	if !attached(info) {
		if err := l.Unpin(); err != nil {
			return false, fmt.Errorf("pinned link %s: unpin: %w", path, err)
		}
		return false, nil
	}
	if err := l.Update(prog); err != nil {
		return false, fmt.Errorf("pinned link %s: replace program: %w", path, err)
	}
	return true, nil
}

// pinNew pins a link that was just made and closes the process's hold on it.
func pinNew(l link.Link, path string) error {
	defer l.Close()
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin link %s: %w", path, err)
	}
	return nil
}

// detachAll detaches what the links of every layout hold. Unpinning alone does
// so too, but a moment later.
func (p pins) detachAll() error {
	paths, err := filepath.Glob(filepath.Join(p.root, "*", "links", "*"))
	errs := []error{err}
	for _, path := range paths {
		errs = append(errs, detachPinned(path))
	}
	return errors.Join(errs...)
}

// detachPinned detaches what a pinned link holds, at once, and unpins it. It is no error
// if there is none.
func detachPinned(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err == nil {
		err = errors.Join(l.Detach(), l.Close())
	}
	if err != nil && !isGone(err) && !errors.Is(err, unix.ENOLINK) && !errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("detach %s: %w", filepath.Base(path), err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin %s: %w", filepath.Base(path), err)
	}
	return nil
}

// Cleanup removes what an instance left in the kernel: programs, links, maps
// and pins, in this network namespace and cgroup. Nothing else is touched, and
// it is no error if there is nothing. No agent of the instance may run.
func Cleanup(o Options) error {
	if err := o.setDefaults(); err != nil {
		return err
	}
	p := pinsOf(&o)
	errs := []error{removeFilters(o.Instance), p.detachAll()}
	// Unpinning the last reference detaches a link and frees a map. Links go
	// first: a program without maps would have to be thought about.
	for _, dir := range []string{p.links, p.maps} {
		if err := os.RemoveAll(dir); err != nil {
			errs = append(errs, fmt.Errorf("pins: %w", err))
		}
	}
	errs = append(errs, os.RemoveAll(p.root), removeAccepted(context.Background()), removeHooks(o.Instance))
	if err := os.Remove(o.PinRoot); err != nil && !errors.Is(err, os.ErrNotExist) &&
		!errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
		errs = append(errs, fmt.Errorf("pins: %w", err))
	}
	return errors.Join(errs...)
}

// Pinned counts the links and the maps that an instance has pinned, those of other
// layouts too.
func Pinned(o Options) (links, maps int, err error) {
	if err := o.setDefaults(); err != nil {
		return 0, 0, err
	}
	for dir, n := range map[string]*int{"links": &links, "maps": &maps} {
		found, err := filepath.Glob(filepath.Join(pinsOf(&o).root, "*", dir, "*"))
		if err != nil {
			return 0, 0, fmt.Errorf("pins: %w", err)
		}
		*n = len(found)
	}
	return links, maps, nil
}

// Instances lists the instances that have something pinned.
func Instances(o Options) ([]string, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(o.PinRoot)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("pins: %w", err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}
