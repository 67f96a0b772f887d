package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// record is a line of a result file: one of the two.
type record struct {
	Run    *Run    `json:"run,omitempty"`
	Sample *Sample `json:"sample,omitempty"`
}

// File is a result file that is written to.
type File struct {
	f *os.File
}

// CreateFile makes a result file for a run in a directory, named after the
// time of its start.
func CreateFile(dir string, run Run) (*File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory of results: %w", err)
	}
	path := filepath.Join(dir, run.Started.UTC().Format("20060102-150405")+".jsonl")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("make result file: %w", err)
	}
	out := &File{f}
	return out, out.write(record{Run: &run})
}

// ResumeFile opens a result file to go on with its run, and returns what it
// holds. A last line that was cut short is cut off.
func ResumeFile(path string) (*File, Run, []Sample, error) {
	run, samples, whole, err := readFile(path)
	if err != nil {
		return nil, run, nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, run, nil, fmt.Errorf("resume: %w", err)
	}
	if err := f.Truncate(whole); err != nil {
		f.Close()
		return nil, run, nil, fmt.Errorf("resume %s: %w", path, err)
	}
	return &File{f}, run, samples, nil
}

// Path is where the file is.
func (f *File) Path() string { return f.f.Name() }

// Append adds a sample.
func (f *File) Append(s Sample) error { return f.write(record{Sample: &s}) }

func (f *File) write(r record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	if _, err := f.f.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// ReadFile returns what a result file holds.
func ReadFile(path string) (Run, []Sample, error) {
	run, samples, _, err := readFile(path)
	return run, samples, err
}

func readFile(path string) (Run, []Sample, int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Run{}, nil, 0, fmt.Errorf("read results: %w", err)
	}
	run, samples, whole, err := decode(data)
	if err != nil {
		return run, nil, 0, fmt.Errorf("read results of %s: %w", path, err)
	}
	return run, samples, whole, nil
}

// decode reads whole lines and returns how many bytes these are.
func decode(data []byte) (run Run, samples []Sample, whole int64, err error) {
	in := bufio.NewReader(bytes.NewReader(data))
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) { // what stands after the last newline was cut short
			if n == 1 {
				return run, nil, 0, errors.New("this is no result file: its first line is not whole")
			}
			return run, samples, whole, nil
		}
		if err != nil {
			return run, nil, 0, err
		}
		var r record
		switch err := json.Unmarshal(line, &r); {
		case err != nil:
			return run, nil, 0, fmt.Errorf("line %d: %w", n, err)
		case n == 1 && r.Run == nil:
			return run, nil, 0, errors.New("this is no result file: its first line describes no run")
		case r.Run != nil:
			run = *r.Run
		case r.Sample != nil:
			samples = append(samples, *r.Sample)
		}
		whole += int64(len(line))
	}
}

// Done returns the steps that samples are of. One that failed is to be tried
// again.
func Done(samples []Sample) map[Step]bool {
	done := map[Step]bool{}
	for _, s := range samples {
		if s.Error == "" {
			done[Step{s.Key, s.Round}] = true
		}
	}
	return done
}

// LatestFile returns the newest result file of a directory.
func LatestFile(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return "", fmt.Errorf("look for results: %w", err)
	}
	var latest string
	var at time.Time
	for _, path := range files {
		if info, err := os.Stat(path); err == nil && info.ModTime().After(at) {
			latest, at = path, info.ModTime()
		}
	}
	if latest == "" {
		return "", fmt.Errorf("there is no result file in %s", dir)
	}
	return latest, nil
}
