package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultName is the name of a lab that was given none.
const DefaultName = "lab"

// Modes of the agent, for [Options.Mode].
const (
	ModeIPTables = "iptables"
	ModeEBPF     = "ebpf"
)

// Options say what lab to build. The zero value is good.
type Options struct {
	// Name tells labs apart: small letters, digits and dashes, at most 40.
	Name string
	// Dir gets the directories manifests and logs. It is made if need be; by
	// default it is the directory under /run that holds the lab's state.
	Dir string
	// Bridge puts the Pods of a node behind a bridge, cni0, instead of giving
	// each a routed veth.
	Bridge bool
	// Binary is the nodeproxy program, for the Pods' servers and the agents;
	// by default the calling program itself.
	Binary string
	// AgentBinary is the nodeproxy program of the agents, if that is another one.
	AgentBinary string
	// Mode is the agents' --mode, [ModeIPTables] by default.
	Mode string
	// AgentArgs are passed to every agent, before the arguments of StartAgent.
	AgentArgs []string
	// AgentSource are the arguments by which agents find their objects, if that is not the
	// manifest directory; [Lab.KeepStore] sets it.
	AgentSource []string
	// AgentTimeout bounds how long an agent may take to its first sync; it is three
	// minutes by default.
	AgentTimeout time.Duration
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

func (o *Options) complete() error {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if err := checkName(o.Name); err != nil {
		return err
	}
	if o.Dir == "" {
		o.Dir = baseDir(o.Name)
	}
	if o.Mode == "" {
		o.Mode = ModeIPTables
	}
	if o.AgentTimeout == 0 {
		o.AgentTimeout = 3 * time.Minute
	}
	if o.Binary == "" {
		binary, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find own program: %w", err)
		}
		o.Binary = binary
	}
	if o.AgentBinary == "" {
		o.AgentBinary = o.Binary
	}
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return fmt.Errorf("resolve directory of lab %q: %w", o.Name, err)
	}
	return nil
}

func checkName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("invalid lab name %q: want small letters, digits and dashes, at most 40", name)
	}
	return nil
}

// ErrNotFound means that there is no lab of that name.
var ErrNotFound = errors.New("no such lab")

// ErrExists means that a lab of that name is there already, maybe half built.
var ErrExists = errors.New("exists already")

// ErrNotRoot means that the caller may not make network namespaces.
var ErrNotRoot = errors.New("the lab makes network namespaces and needs root")

// Lab is a lab that is up. Its methods are safe for concurrent use.
type Lab struct {
	opts  Options
	store Store // nil: the manifest directory

	mu      sync.Mutex // guards dialers
	dialers map[string]*dialer
}

// Up builds a lab, with the Pods' servers running and the manifests of the
// demo cluster written; agents are started by [Lab.StartAgent]. If it fails,
// or ctx ends, it takes down what it had built and says why.
func Up(ctx context.Context, opts Options) (_ *Lab, err error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if err := opts.complete(); err != nil {
		return nil, err
	}
	if err := opts.checkBridge(); err != nil {
		return nil, err
	}
	l := &Lab{opts: opts}
	state, err := claim(opts)
	if err != nil {
		return nil, fmt.Errorf("build lab %q: %w", opts.Name, err)
	}
	defer state.unlock()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("build lab %q: %w", opts.Name, err), teardown(opts.Name))
		}
	}()
	top, err := l.cgroupTop()
	if err != nil {
		return nil, err
	}
	if err := makeCgroups(top); err != nil {
		return nil, err
	}
	if err := l.buildNetwork(ctx); err != nil {
		return nil, err
	}
	if err := l.ApplyDemoCluster(); err != nil {
		return nil, err
	}
	if err := l.startServers(ctx); err != nil {
		return nil, err
	}
	state.Ready = true
	return l, state.save()
}

// Open returns a lab that this or another process has built. The error is
// [ErrNotFound] where there is none.
func Open(name string) (*Lab, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	state, err := loadState(name)
	if err != nil {
		return nil, fmt.Errorf("open lab %q: %w", name, err)
	}
	if !state.Ready {
		return nil, fmt.Errorf("open lab %q: it is half built; take it down", name)
	}
	return &Lab{opts: state.Options}, nil
}

// Down takes the lab down, as the function of that name does; it is no error
// if that has happened already.
func (l *Lab) Down() error {
	l.Close()
	if err := Down(l.opts.Name); !errors.Is(err, ErrNotFound) {
		return err
	}
	return nil
}

// Down kills every process of the lab and removes all that was made for it,
// also where it was half built or its builder was killed. It waits for another
// process that is at the same. The error is [ErrNotFound] where nothing of
// such a lab was found; any other means that something may be left.
func Down(name string) error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	if err := checkName(name); err != nil {
		return err
	}
	unlock, err := lock(name)
	if err != nil {
		return fmt.Errorf("take down lab %q: %w", name, err)
	}
	defer unlock()
	if err := teardown(name); err != nil {
		return fmt.Errorf("take down lab %q: %w", name, err)
	}
	return nil
}

// teardown removes everything that has a name of the lab, processes first.
// It goes on after an error.
func teardown(name string) error {
	var errs []error
	found := false
	note := func(any bool, err error) {
		found = found || any
		errs = append(errs, err)
	}
	if root, err := cgroupRoot(); err != nil {
		errs = append(errs, err)
	} else {
		note(removeCgroups(filepath.Join(root, cgroupName(name))))
	}
	for _, p := range places {
		removeLock(netnsName(name, p.Name))
		note(deleteNetns(netnsName(name, p.Name)))
	}
	note(removePins(name))
	note(removeSockets(name))
	note(removeState(name))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if !found {
		return ErrNotFound
	}
	return nil
}

// pinRoot is where agents in eBPF mode pin programs and maps, in a directory
// named after their instance.
const pinRoot = "/sys/fs/bpf/nodeproxy"

// removePins lets go of the programs and maps of the lab's agents.
func removePins(name string) (found bool, err error) {
	var errs []error
	for _, p := range PlacesOf(Node) {
		dir := filepath.Join(pinRoot, netnsName(name, p.Name))
		if _, err := os.Lstat(dir); err != nil {
			continue
		}
		found = true
		errs = append(errs, os.RemoveAll(dir))
	}
	if found {
		os.Remove(pinRoot) // if it was the last; another's keep it
	}
	return found, errors.Join(errs...)
}

// socketRoot is where agents have the sockets on which they are asked.
const socketRoot = "/run/nodeproxy"

// removeLock removes the lock of an agent that was killed in a network namespace,
// which is named after that.
func removeLock(netns string) {
	var ns unix.Stat_t
	if unix.Stat(filepath.Join(netnsDir, netns), &ns) == nil {
		_ = os.Remove(filepath.Join(socketRoot, fmt.Sprintf("netns-%d.lock", ns.Ino))) // mostly, there is none
		_ = os.Remove(socketRoot)                                                      // if it was the last
	}
}

// removeSockets removes those of agents that were killed.
func removeSockets(name string) (found bool, err error) {
	var errs []error
	for _, p := range PlacesOf(Node) {
		err := os.Remove(filepath.Join(socketRoot, netnsName(name, p.Name)+".sock"))
		found = found || err == nil
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if found {
		os.Remove(socketRoot) // if it was the last; another's keep it
	}
	return found, errors.Join(errs...)
}

// Name returns the lab's name.
func (l *Lab) Name() string { return l.opts.Name }

// Options returns the options that the lab was built with, completed.
func (l *Lab) Options() Options { return l.opts }

// ManifestDir is the directory that the agents read their objects from.
func (l *Lab) ManifestDir() string { return filepath.Join(l.opts.Dir, manifestsDir) }

// StateDir is a directory of the lab's own, which goes when it does.
func (l *Lab) StateDir() string { return baseDir(l.opts.Name) }

// LogPath is the log of a process that [Lab.Start] has started under a name.
func (l *Lab) LogPath(name string) string {
	return filepath.Join(l.opts.Dir, logsDir, name+".log")
}

// Netns returns the name of a place's network namespace.
func (l *Lab) Netns(place string) string { return netnsName(l.opts.Name, place) }

// Do runs fn on the calling goroutine with its OS thread in the place's
// network namespace. Goroutines that fn starts are not in it, nor is the
// process in the place's cgroup: see [Lab.Dial] for what needs that.
func (l *Lab) Do(place string, fn func() error) error {
	if _, err := FindPlace(place); err != nil {
		return err
	}
	return inNetns(l.Netns(place), fn)
}

// Cgroup returns the directory of the cgroup that a place's processes are in.
func (l *Lab) Cgroup(place string) (string, error) {
	p, err := FindPlace(place)
	if err != nil {
		return "", err
	}
	top, err := l.cgroupTop()
	return filepath.Join(top, p.cgroup()), err
}

// NodeCgroup returns the directory of the cgroup that holds the processes of
// a node and of its Pods, and nothing else.
func (l *Lab) NodeCgroup(node string) (string, error) {
	top, err := l.cgroupTop()
	return filepath.Join(top, node), err
}

func (l *Lab) cgroupTop() (string, error) {
	root, err := cgroupRoot()
	return filepath.Join(root, cgroupName(l.opts.Name)), err
}
