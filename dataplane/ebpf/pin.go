package ebpf

import (
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
const layoutVersion = "v6"

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

// loadCollection loads programs and maps, and takes over the maps that are
// pinned. A pinned map keeps its size, whatever the options say.
func loadCollection(o *Options, p pins, f kernelFeatures) (*bpfObjects, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	o.Sizes.apply(spec)
	for name, m := range spec.Maps {
		if name == bpfMapScratch || strings.HasPrefix(name, ".") {
			continue
		}
		m.Pinning = ebpf.PinByName
		if err := adoptSize(o, m, filepath.Join(p.maps, name)); err != nil {
			return nil, err
		}
	}
	if err := setConstants(spec, o, f); err != nil {
		return nil, err
	}
	objs := new(bpfObjects)
	err = spec.LoadAndAssign(objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: p.maps}})
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	return objs, nil
}

func adoptSize(o *Options, m *ebpf.MapSpec, path string) error {
	pinned, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pinned map %s: %w", m.Name, err)
	}
	defer pinned.Close()
	if pinned.MaxEntries() != m.MaxEntries {
		o.Logger.Warn("map keeps the size it has until a clean-up", "map", m.Name,
			"entries", pinned.MaxEntries(), "wanted", m.MaxEntries)
		m.MaxEntries = pinned.MaxEntries()
	}
	return nil
}

func setConstants(spec *ebpf.CollectionSpec, o *Options, f kernelFeatures) error {
	cookie, err := netnsCookie()
	if err != nil {
		return err
	}
	for name, value := range map[string]any{
		bpfVarNatPortMin:       o.NATPortMin,
		bpfVarNatPortMax:       o.NATPortMax,
		bpfVarHostNetns:        cookie,
		bpfVarFibFlags:         f.fibFlags,
		bpfVarCsumIpv6:         f.csumIPv6,
		bpfVarRedirectPeer:     o.RedirectPeer,
		bpfVarTranslateSockets: !o.PacketsOnly,
		bpfVarPingServices:     o.PingServiceIPs,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("setting %s: %w", name, err)
		}
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

// Cleanup removes what an instance left in the kernel: programs, links, maps
// and pins, in this network namespace and cgroup. Nothing else is touched, and
// it is no error if there is nothing. No agent of the instance may run.
func Cleanup(o Options) error {
	if err := o.setDefaults(); err != nil {
		return err
	}
	p := pinsOf(&o)
	errs := []error{removeFilters(o.Instance)}
	// Unpinning the last reference detaches a link and frees a map. Links go
	// first: a program without maps would have to be thought about.
	for _, dir := range []string{p.links, p.maps} {
		if err := os.RemoveAll(dir); err != nil {
			errs = append(errs, fmt.Errorf("pins: %w", err))
		}
	}
	errs = append(errs, os.RemoveAll(p.root))
	if err := os.Remove(o.PinRoot); err != nil && !errors.Is(err, os.ErrNotExist) &&
		!errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
		errs = append(errs, fmt.Errorf("pins: %w", err))
	}
	return errors.Join(errs...)
}
