package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

const (
	// stateRoot holds one directory for each lab, its name's one claim.
	stateRoot    = "/run/nodeproxy-lab"
	stateFile    = "state.json"
	runDir       = "run"       // in the state directory: records of processes
	manifestsDir = "manifests" // in Options.Dir
	logsDir      = "logs"      // in Options.Dir

	// lockTimeout bounds the wait for another process that builds the same lab
	// or takes it down.
	lockTimeout = 20 * time.Second
)

func baseDir(name string) string { return filepath.Join(stateRoot, name) }

// state is what a lab's state file holds: what cannot be told from its name.
type state struct {
	Options Options
	MadeDir bool // Options.Dir was not there before
	Ready   bool // it was built to the end

	unlock func()
}

// claim makes the state directory, which fails if there is one, takes its
// lock, and makes the other directories of the lab. It undoes itself if it
// fails.
func claim(opts Options) (_ *state, err error) {
	base := baseDir(opts.Name)
	if err := makeBase(base); err != nil {
		return nil, err
	}
	unlock, err := lock(opts.Name)
	if err != nil {
		return nil, err
	}
	s := &state{Options: opts, unlock: unlock}
	defer func() {
		if err != nil {
			_, removeErr := removeState(opts.Name)
			err = errors.Join(err, removeErr)
			unlock()
		}
	}()
	for _, dir := range []string{manifestsDir, logsDir} {
		if _, err := os.Lstat(filepath.Join(opts.Dir, dir)); err == nil {
			return nil, fmt.Errorf("%s has a %s already, which is not this lab's", opts.Dir, dir)
		}
	}
	if _, err := os.Stat(opts.Dir); errors.Is(err, fs.ErrNotExist) {
		s.MadeDir = true
	}
	// Written before the directories are made: from here on they are ours.
	if err := s.save(); err != nil {
		return nil, err
	}
	for _, dir := range []string{
		filepath.Join(base, runDir),
		filepath.Join(opts.Dir, manifestsDir), filepath.Join(opts.Dir, logsDir),
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("create directory of lab: %w", err)
		}
	}
	return s, nil
}

func makeBase(base string) error {
	for {
		if err := os.MkdirAll(stateRoot, 0o755); err != nil {
			return fmt.Errorf("create state directory: %w", err)
		}
		err := os.Mkdir(base, 0o755)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // another lab's Down has just removed the empty root
		case errors.Is(err, fs.ErrExist):
			return ErrExists
		case err != nil:
			return fmt.Errorf("create state directory: %w", err)
		}
		return nil
	}
}

// lock waits for the lab's lock and returns what releases it. A lab without
// a state directory has nothing to lock.
func lock(name string) (unlock func(), err error) {
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(20 * time.Millisecond) {
		dir, err := os.Open(baseDir(name))
		if errors.Is(err, fs.ErrNotExist) {
			return func() {}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("open state directory: %w", err)
		}
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		// The directory may have been removed, and made anew, while the lock
		// was another's: only the one that has the name counts.
		if err == nil && isCurrent(dir) {
			return func() { dir.Close() }, nil
		}
		dir.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return nil, fmt.Errorf("lock %s (another process builds it or takes it down): %w", dir.Name(), err)
		}
	}
}

// isCurrent reports whether the open directory is still the one at its path.
func isCurrent(dir *os.File) bool {
	open, err := dir.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(dir.Name())
	return err == nil && os.SameFile(open, named)
}

func loadState(name string) (*state, error) {
	data, err := os.ReadFile(filepath.Join(baseDir(name), stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	s := &state{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("decode state: %w", err)
	}
	return s, nil
}

func (s *state) save() error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	return manifest.WriteAtomic(filepath.Join(baseDir(s.Options.Name), stateFile), append(data, '\n'))
}

// removeState removes the directories of a lab, its state last, and reports
// whether there was any.
func removeState(name string) (bool, error) {
	base := baseDir(name)
	if _, err := os.Stat(base); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	// A state that cannot be read was never finished: then no directory
	// outside of base had been made.
	if s, err := loadState(name); err == nil && s.Options.Dir != base {
		err := errors.Join(
			os.RemoveAll(filepath.Join(s.Options.Dir, manifestsDir)),
			os.RemoveAll(filepath.Join(s.Options.Dir, logsDir)))
		if err != nil {
			return true, fmt.Errorf("remove files of lab: %w", err)
		}
		if s.MadeDir {
			_ = os.Remove(s.Options.Dir) // stays if somebody put something there
		}
	}
	if err := os.RemoveAll(base); err != nil {
		return true, fmt.Errorf("remove state directory: %w", err)
	}
	_ = os.Remove(stateRoot) // stays if there are other labs
	return true, nil
}

// List returns the names of all labs on the machine, half built ones too.
func List() ([]string, error) {
	entries, err := os.ReadDir(stateRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}
