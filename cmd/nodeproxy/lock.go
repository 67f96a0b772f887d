package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/admin"
)

const (
	// lockPatience is how long an agent waits for the lock of one that was just
	// killed: its threads do not all end at the same moment.
	lockPatience = time.Second
	// lockPrefix begins the names of locks in [admin.Dir].
	lockPrefix = "netns-"
)

// errLocked means that another process has a lock.
var errLocked = errors.New("another process has the lock")

// lock is a file that is held with flock(2), until it is closed or the process
// ends, however that happens.
type lock struct{ file *os.File }

// lockNode keeps a second agent, of whatever instance, out of this network
// namespace: the rules there can follow only one. The lock is a file that only
// root can make, named after the namespace; an abstract socket would do without
// one, and any process in the namespace could take it.
func lockNode(ctx context.Context) (*lock, error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return nil, fmt.Errorf("find out which network namespace this is: %w", err)
	}
	removeStaleLocks()
	path := filepath.Join(admin.Dir, fmt.Sprintf("%s%d.lock", lockPrefix, ns.Ino))
	for deadline := time.Now().Add(lockPatience); ; {
		l, err := tryLock(path)
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, errLocked):
			return nil, fmt.Errorf("take the lock of this network namespace: %w", err)
		case time.Now().After(deadline):
			return nil, errors.New("an agent runs in this network namespace already: stop it first")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tryLock takes a lock, or returns errLocked.
func tryLock(path string) (*lock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, os.ErrNotExist) { // the directory was removed with its last file
			if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil || errors.Is(err, os.ErrExist) {
				continue // or was removed while it was made
			}
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close() // nothing was written
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errLocked
			}
			return nil, fmt.Errorf("flock %s: %w", path, err)
		}
		if isFile(f, path) {
			return &lock{f}, nil
		}
		_ = f.Close() // its holder has removed it meanwhile: that one locks nobody out
	}
}

// isFile reports whether an open file is the one at path.
func isFile(f *os.File, path string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(opened, there)
}

// Close gives the lock back and removes its file.
func (l *lock) Close() error {
	err := errors.Join(os.Remove(l.file.Name()), l.file.Close()) // in this order: who opened it before looks again
	_ = os.Remove(filepath.Dir(l.file.Name()))                   // if it was the last
	return err
}

// removeStaleLocks removes the locks of agents that were killed, whose network
// namespaces may be gone.
func removeStaleLocks() {
	paths, err := filepath.Glob(filepath.Join(admin.Dir, lockPrefix+"*.lock"))
	if err != nil {
		return
	}
	for _, path := range paths {
		if l, err := tryLock(path); err == nil {
			_ = os.Remove(path)
			_ = l.file.Close()
		}
	}
}
