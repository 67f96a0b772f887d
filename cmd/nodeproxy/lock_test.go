package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestLockIsHeldByOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agents", "netns-1.lock")
	first, err := tryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: want a file of root's alone", info, err)
	}
	if _, err := tryLock(path); !errors.Is(err, errLocked) {
		t.Errorf("second lock: %v, want %v", err, errLocked)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
	again, err := tryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
}

// Of many that want a lock, and give it back, one has it at a time.
func TestLockIsNeverHeldByTwo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "netns-1.lock")
	holders := make(chan struct{}, 1)
	done := make(chan error)
	for range 8 {
		go func() {
			for range 500 {
				l, err := tryLock(path)
				if errors.Is(err, errLocked) {
					continue
				}
				if err != nil {
					done <- err
					return
				}
				select {
				case holders <- struct{}{}:
				default:
					done <- errors.New("two hold the lock")
					return
				}
				<-holders
				l.Close()
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
