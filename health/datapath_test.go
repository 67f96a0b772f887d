package health

import (
	"errors"
	"testing"
	"time"
)

// A failure counts when it has lasted, and no longer than it lasts.
func TestDataPathFailsWhenItHasLasted(t *testing.T) {
	start := time.Unix(1000, 0)
	broken := errors.New("broken")
	d := NewDataPath(15 * time.Second)
	for _, step := range []struct {
		after   time.Duration
		found   error
		changed bool
		err     error
	}{
		{0, nil, false, nil}, {5 * time.Second, broken, true, nil}, {15 * time.Second, broken, false, nil},
		{20 * time.Second, broken, false, broken}, {25 * time.Second, nil, true, nil}, {30 * time.Second, broken, true, nil},
		{44 * time.Second, broken, false, nil}, {45 * time.Second, broken, false, broken},
	} {
		now := start.Add(step.after)
		if changed := d.Found(now, step.found); changed != step.changed {
			t.Errorf("after %s: changed %v", step.after, changed)
		}
		if err := d.Err(now); !errors.Is(err, step.err) || err != nil && step.err == nil {
			t.Errorf("after %s: %v, want %v", step.after, err, step.err)
		}
	}
}
