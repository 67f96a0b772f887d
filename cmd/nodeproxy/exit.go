package main

import (
	"errors"
	"os/exec"
	"syscall"
)

// Exit codes. What failed or was typed wrong gives 1 too.
const (
	codeNo      = 1 // the answer is no: not ready, differences, problems found
	codeNoAgent = 3 // no agent answers, as systemctl status has it
)

// signalled is what a shell adds to the number of the signal that ended a command.
const signalled = 128

// codeError ends the program with a code, and with a message unless err is nil.
type codeError struct {
	code int
	err  error
}

func withCode(code int, err error) error { return &codeError{code, err} }

// Error implements error.
func (e *codeError) Error() string {
	if e.err == nil {
		return "no"
	}
	return e.err.Error()
}

// Unwrap gives the cause.
func (e *codeError) Unwrap() error { return e.err }

// exitOf returns the exit code that an error stands for, and what is to be said,
// which is empty if all was said.
func exitOf(err error) (code int, message string) {
	if errors.Is(err, syscall.EPIPE) { // the reader has seen enough
		return signalled + int(syscall.SIGPIPE), ""
	}
	var exit *exec.ExitError // a command that was run for the user: its status is the answer
	if errors.As(err, &exit) {
		if exit.ExitCode() >= 0 {
			return exit.ExitCode(), ""
		}
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			if status.Signal() == syscall.SIGPIPE {
				return signalled + int(syscall.SIGPIPE), ""
			}
			return signalled + int(status.Signal()), err.Error()
		}
	}
	var with *codeError
	if errors.As(err, &with) {
		if with.err == nil {
			return with.code, ""
		}
		return with.code, err.Error()
	}
	return 1, err.Error()
}
