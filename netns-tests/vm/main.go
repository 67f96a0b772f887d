// Command vm runs test binaries as root on stock Debian kernels, in QEMU without
// KVM, and reports for each kernel. It takes kernels from Debian's packages and
// builds an initramfs of the tests and the modules that they need.
//
//	vm -kernel linux-image-cloud-amd64 [-kernel ...] -test NAME=PACKAGE[:-run=REGEXP] ...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

// options are what the command line says.
type options struct {
	kernels list // Debian packages; a package that only depends on one names it
	tests   list // PACKAGE or PACKAGE=REGEXP of tests to run
	timeout time.Duration
	verbose bool
	work    string
}

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	var o options
	flag.Var(&o.kernels, "kernel", "Debian package of a kernel, may be given again")
	flag.Var(&o.tests, "test", "package to test, as PACKAGE or PACKAGE=REGEXP of tests; may be given again")
	flag.DurationVar(&o.timeout, "timeout", 15*time.Minute, "limit for one kernel")
	flag.BoolVar(&o.verbose, "v", false, "show what the machine prints")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, &o); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options) (err error) {
	if len(o.kernels) == 0 || len(o.tests) == 0 {
		return errors.New("nothing to do: give -kernel and -test")
	}
	if o.work, err = os.MkdirTemp("", "nodeproxy-vm-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.work)
	tests, err := buildTests(ctx, o)
	if err != nil {
		return err
	}
	var failed []string
	for _, name := range o.kernels {
		start := time.Now()
		fmt.Printf("--- %s: fetching and booting\n", name)
		result, err := runKernel(ctx, o, name, tests)
		if err != nil {
			return fmt.Errorf("kernel %s: %w", name, err)
		}
		fmt.Printf("--- %s (Linux %s): %s in %s\n", name, result.release, result.summary(), time.Since(start).Round(time.Second))
		if !result.passed(len(tests)) {
			failed = append(failed, name)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("tests failed on %s", strings.Join(failed, ", "))
	}
	return nil
}

// test is one test binary and how it is run.
type test struct {
	name, path, args string
}

// buildTests compiles the tests, and the program that labs run.
func buildTests(ctx context.Context, o *options) ([]test, error) {
	build := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // static: there is no libc inside
		cmd.Stderr = os.Stderr
		return cmd.Run()
	}
	if err := build("build", "-o", filepath.Join(o.work, "nodeproxy"), "./cmd/nodeproxy"); err != nil {
		return nil, fmt.Errorf("build nodeproxy: %w", err)
	}
	var out []test
	for _, spec := range o.tests {
		pkg, pattern, _ := strings.Cut(spec, "=")
		name := strings.ReplaceAll(strings.Trim(pkg, "./"), "/", "-")
		t := test{name: name, path: filepath.Join(o.work, name+".test")}
		if pattern != "" {
			t.args = "-test.run='" + pattern + "'"
		}
		if err := build("test", "-tags", "stock", "-c", "-o", t.path, pkg); err != nil {
			return nil, fmt.Errorf("build tests of %s: %w", pkg, err)
		}
		out = append(out, t)
	}
	return out, nil
}
