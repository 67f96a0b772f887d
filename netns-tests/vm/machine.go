package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// result is what the tests on one kernel came to.
type result struct {
	release       string
	ended         int // test binaries that ended
	good          int // of these, with status 0
	pass, failing int // single tests, subtests not counted
	skipped       int
}

func (r *result) passed(binaries int) bool {
	return r.good == binaries && r.failing == 0 && r.skipped == 0 && r.pass > 0
}

func (r *result) summary() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", r.pass, r.failing, r.skipped)
}

// runKernel boots one kernel, runs the tests on it and throws it away.
func runKernel(ctx context.Context, o *options, name string, tests []test) (*result, error) {
	dir := filepath.Join(o.work, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	k, err := fetch(ctx, dir, name)
	if err != nil {
		return nil, err
	}
	initramfs := filepath.Join(dir, "initramfs")
	if err := writeInitramfs(initramfs, &k, o, tests); err != nil {
		return nil, fmt.Errorf("write initramfs: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "4096",
		"-kernel", k.image, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1",
		"-nographic", "-no-reboot", "-nic", "none")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	r, tail := read(out, o.verbose)
	err = cmd.Wait()
	if r.ended < len(tests) {
		return nil, fmt.Errorf("machine ended (%v) after %d of %d tests; the last of what it printed:\n%s", err, r.ended, len(tests), tail)
	}
	if !r.passed(len(tests)) && !o.verbose {
		fmt.Println(tail)
	}
	return r, nil
}

// kept is how much of what a machine printed is shown when a test fails.
const kept = 16 << 10

// read follows what a machine prints, shows how far it is, and returns the end
// of it. Of tests that pass, only the count is of interest.
func read(out io.Reader, verbose bool) (*result, string) {
	r := &result{}
	var tail bytes.Buffer
	last := time.Now()
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := strings.TrimRight(sc.Text(), "\r")
		words := strings.Fields(line)
		switch {
		case strings.Contains(line, "VM-BOOTED ") && len(words) > 1: // behind what the firmware left on the line
			r.release = words[len(words)-1]
		case strings.HasPrefix(line, "VM-END ") && len(words) == 3:
			r.ended++
			if words[2] == "0" {
				r.good++
			}
		case strings.HasPrefix(line, "--- PASS: "):
			r.pass++
		case strings.HasPrefix(line, "--- FAIL: "):
			r.failing++
		case strings.HasPrefix(line, "--- SKIP: "):
			r.skipped++
		}
		if verbose {
			fmt.Println(line)
		} else if time.Since(last) > 20*time.Second {
			last = time.Now()
			fmt.Printf("    %s so far\n", r.summary())
		}
		if !strings.Contains(line, "--- PASS") && !strings.HasPrefix(line, "=== ") {
			tail.WriteString(line + "\n")
			if extra := tail.Len() - kept; extra > 0 {
				tail.Next(extra)
			}
		}
	}
	return r, tail.String()
}
