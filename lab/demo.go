package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nodeproxy/nodeproxy/lab/echo"
)

// ErrDemoFailed means that a step of the demo did not go as it should.
var ErrDemoFailed = errors.New("the demo failed")

// DemoOptions are options of [Demo].
type DemoOptions struct {
	Lab    Options
	Out    io.Writer
	Colour bool
	Keep   bool // leave the lab up
	// Prepare, if set, is called before the agents are started, for a [Store]
	// other than manifests. It returns a line of the story.
	Prepare func(context.Context, *Lab) (string, error)
	// Throughput is how long each run of iperf3 takes, in whole seconds; 2 s
	// by default.
	Throughput time.Duration
}

// demo is one run of the tour. It goes on after a failed check.
type demo struct {
	ctx    context.Context
	lab    *Lab
	opts   DemoOptions
	failed int
}

// Demo builds a lab with an agent on each node, dials Services from
// everywhere, tells what happened and checks that it was right, and takes the
// lab down again. It writes the story to opts.Out. The error wraps
// [ErrDemoFailed] if a check failed, which the story then has in place.
func Demo(ctx context.Context, opts DemoOptions) (err error) {
	if opts.Throughput == 0 {
		opts.Throughput = 2 * time.Second
	}
	begin := time.Now()
	l, err := Up(ctx, opts.Lab)
	if err != nil {
		return err
	}
	if !opts.Keep {
		defer func() { err = errors.Join(err, l.Down()) }()
	}
	defer l.Close()
	d := &demo{ctx: ctx, lab: l, opts: opts}
	d.printf("A lab, built in %s:\n\n", time.Since(begin).Round(time.Millisecond))
	prepared := ""
	if opts.Prepare != nil {
		if prepared, err = opts.Prepare(ctx, l); err != nil {
			return err
		}
	}
	begin = time.Now()
	if err := l.StartAgents(ctx); err != nil {
		return err
	}
	d.printf("%s\n%sBoth agents had their first sync within %s.\n",
		indent(draw(l.opts.Bridge, l.Agents())), prepared, time.Since(begin).Round(time.Millisecond))

	for i, step := range demoSteps {
		d.printf("\n%s\n", d.paint(bold, fmt.Sprintf("%d  %s", i+1, step.title)))
		d.printf("   %s\n", step.story)
		step.run(d)
		if ctx.Err() != nil {
			return fmt.Errorf("demo: %w", context.Cause(ctx))
		}
	}
	return d.finish()
}

func (d *demo) finish() error {
	d.printf("\n")
	if d.failed > 0 {
		d.printf("%s\n", d.paint(red, fmt.Sprintf("✗ %d checks failed.", d.failed)))
		for _, a := range d.lab.Agents() {
			d.printf("  the log of %s's agent ends:\n%s", a.Node, indent(indent(d.agentTail(a.Node))))
		}
		return ErrDemoFailed
	}
	d.printf("%s\n", d.paint(green, "✓ All checks passed."))
	if d.opts.Keep {
		d.printf("\nThe lab stays up. Look around:\n"+
			"  nodeproxy lab exec --name %[1]s client -- curl http://192.168.77.11:30080/\n"+
			"  nodeproxy lab down --name %[1]s\n", d.lab.Name())
	}
	return nil
}

func (d *demo) agentTail(node string) string {
	p, _, err := d.lab.Agent(node)
	if err != nil {
		return err.Error() + "\n"
	}
	return d.lab.logTail(p) + "\n"
}

// check prints one line: what was done, and what came of it or, if err is
// not nil, what is wrong with that.
func (d *demo) check(what, result string, err error) {
	mark := d.paint(green, "✓")
	if err != nil {
		d.failed++
		mark, result = d.paint(red, "✗"), d.paint(red, err.Error())
	}
	d.printf("   %s %-50s %s\n", mark, what, result)
}

// note prints a line that nothing was checked for.
func (d *demo) note(format string, args ...any) {
	d.printf("     %s\n", d.paint(dim, fmt.Sprintf(format, args...)))
}

func (d *demo) printf(format string, args ...any) {
	fmt.Fprintf(d.opts.Out, format, args...) // as with Stdout, nobody to tell
}

// SGR codes of the few colours that the story has.
const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
)

func (d *demo) paint(code, text string) string {
	if !d.opts.Colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// arrow says who dials what.
func arrow(from string, r echo.Request) string {
	return fmt.Sprintf("%s → %s over %s", from, r.To, networkNames[r.Network])
}

var networkNames = map[echo.Network]string{echo.TCP: "TCP", echo.UDP: "UDP", echo.HTTP: "HTTP"}
