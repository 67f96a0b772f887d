package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nodeproxy/nodeproxy/lab/manifest"
)

// Progress is told what a run does.
type Progress struct {
	// Step is called after each step, with how many are over and the time that
	// the rest will take, labs not counted.
	Step func(done, all int, left time.Duration, s Sample)
	// Note is called with a line of text.
	Note func(text string)
}

// Measure measures what is not done yet and appends it to the file. It goes on
// after a step that fails, whose sample says why, and ends with ctx; the labs
// are gone when it returns.
func Measure(ctx context.Context, o Options, env Environment, file *File, done map[Step]bool, p Progress) error {
	r := &runner{opts: o, env: env, file: file, progress: p}
	groups := Plan(o, done)
	for _, g := range groups {
		for _, s := range append(g.Data, g.Control...) {
			r.all++
			r.left += o.Estimate(s)
		}
	}
	for _, g := range groups {
		if err := r.group(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

type runner struct {
	opts      Options
	env       Environment
	file      *File
	progress  Progress
	labs      int // built so far
	done, all int
	left      time.Duration
}

func (r *runner) group(ctx context.Context, g Group) (err error) {
	sites := map[string]*site{}
	failed := map[string]error{} // columns that cannot be measured here
	defer func() {
		for _, s := range sites {
			err = errors.Join(err, s.Down())
		}
	}()
	all := objects(g, r.opts)
	data, err := manifest.EncodeJSON(all...)
	if err != nil {
		return err
	}
	started := map[Step]bool{} // starts that building the labs has measured
	for _, column := range g.Columns() {
		r.progress.Note(fmt.Sprintf("building the lab of %s with %d Services (v%d)", column, g.Services, g.Family))
		s, sample, err := r.build(ctx, column, g, all, data)
		if s != nil {
			sites[column] = s
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			failed[column] = err
			r.progress.Note(fmt.Sprintf("%s cannot be measured with %d Services: %v", column, g.Services, err))
			continue
		}
		if first := (Step{sample.Key, 0}); sample.Work == WorkStart && has(g.Control, first) {
			started[first] = true
			if err := r.record(first, sample, nil); err != nil {
				return err
			}
		}
	}
	if err := r.steps(ctx, g.Data, sites, failed, started, func(s *site, step Step) (Sample, error) { return s.measure(ctx, step.Key) }); err != nil {
		return err
	}
	return r.steps(ctx, g.Control, sites, failed, started, func(s *site, step Step) (Sample, error) { return s.control(ctx, step) })
}

func has(steps []Step, want Step) bool {
	for _, s := range steps {
		if s == want {
			return true
		}
	}
	return false
}

// build makes a column's lab and starts its agents, which is a figure too. The
// lab is returned with an error as well, if there is one to take down.
func (r *runner) build(ctx context.Context, column string, g Group, all []any, data []byte) (*site, Sample, error) {
	r.labs++
	s, err := newSite(ctx, column, r.env, r.opts, g, r.labs, all, data)
	if err != nil {
		return nil, Sample{}, err
	}
	if column == Bare {
		return s, Sample{}, s.awaitTraffic(ctx)
	}
	key := Key{Column: column, Family: g.Family, Services: g.Services, Work: WorkStart}
	var sample Sample
	if len(g.Control) > 0 {
		sample, err = s.startAll(ctx, key)
	} else {
		err = errors.Join(s.start(ctx, "node-a"), s.start(ctx, "node-b"))
	}
	if err == nil {
		err = s.awaitTraffic(ctx)
	}
	if err == nil {
		err = s.findRanks(ctx)
	}
	return s, sample, errors.Join(err, s.pauseAPI(true))
}

// steps measures steps one after the other.
func (r *runner) steps(ctx context.Context, steps []Step, sites map[string]*site, failed map[string]error, over map[Step]bool, measure func(*site, Step) (Sample, error)) error {
	for _, step := range steps {
		if over[step] {
			continue
		}
		var sample Sample
		err := failed[step.Column]
		if err == nil {
			sample, err = measure(sites[step.Column], step)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := r.record(step, sample, err); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) record(step Step, sample Sample, err error) error {
	if err != nil {
		sample = Sample{Error: strings.TrimSpace(err.Error())}
	}
	sample.Key, sample.Round, sample.At = step.Key, step.Round, time.Now()
	r.done++
	r.left -= r.opts.Estimate(step)
	if err := r.file.Append(sample); err != nil {
		return err
	}
	r.progress.Step(r.done, r.all, r.left, sample)
	return nil
}
