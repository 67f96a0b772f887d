package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// Cmd is an [exec.Cmd] that runs in a place of the lab. Only the methods that
// start it differ.
type Cmd struct {
	*exec.Cmd
	lab   *Lab
	place string
}

// Command returns a command that will run in the place's network namespace
// and be born in its cgroup. It is killed when ctx ends. The machine's mounts
// and process IDs are visible to it, /sys too: only the network is the
// place's. An unknown place is reported when it is started.
func (l *Lab) Command(ctx context.Context, place string, argv ...string) *Cmd {
	return &Cmd{Cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), lab: l, place: place}
}

// Start is [exec.Cmd.Start].
func (c *Cmd) Start() error {
	dir, err := c.lab.Cgroup(c.place)
	if err != nil {
		return err
	}
	cgroup, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open cgroup of %s: %w", c.place, err)
	}
	defer cgroup.Close()
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.UseCgroupFD = true
	c.SysProcAttr.CgroupFD = int(cgroup.Fd())
	// The child has the namespaces of the thread that forks.
	if err := c.lab.Do(c.place, c.Cmd.Start); err != nil {
		return fmt.Errorf("start %s in %s: %w", c.Args[0], c.place, err)
	}
	return nil
}

// Run is [exec.Cmd.Run].
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is [exec.Cmd.Output].
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		exit.Stderr = stderr.Bytes()
	}
	return stdout.Bytes(), err
}

// CombinedOutput is [exec.Cmd.CombinedOutput].
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var output bytes.Buffer
	c.Stdout, c.Stderr = &output, &output
	err := c.Run()
	return output.Bytes(), err
}
