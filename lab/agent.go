package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// agentName is the name of a node's agent as a [Process].
func agentName(node string) string { return "agent-" + node }

// StartAgent starts `nodeproxy run` on a node, in the mode of the lab's
// options, and waits for its first sync. extraArgs come last, so they
// override what stands before them, the mode too. If the agent does not get
// so far, the error shows the end of its log, and it is not left running.
func (l *Lab) StartAgent(ctx context.Context, node string, extraArgs ...string) error {
	if p, err := FindPlace(node); err != nil || p.Kind != Node {
		return errors.Join(err, fmt.Errorf("start agent: %q is not a node", node))
	}
	argv, err := l.agentArgv(node, extraArgs)
	if err != nil {
		return err
	}
	p, err := l.Start(node, agentName(node), argv...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.opts.AgentTimeout,
		fmt.Errorf("no first sync within %s", l.opts.AgentTimeout))
	defer cancel()
	// slog quotes a value only if it must, so both spellings are the same log.
	if err := l.waitForLog(ctx, p, "msg=synced", `msg="synced"`); err != nil {
		return errors.Join(err, l.Kill(p.Name))
	}
	return nil
}

func (l *Lab) agentArgv(node string, extraArgs []string) ([]string, error) {
	args := slices.Concat(l.opts.AgentArgs, extraArgs)
	mode := flagValue(args, "--mode", l.opts.Mode)
	argv := []string{
		l.opts.AgentBinary, "run",
		"--hostname-override", node,
		"--mode", mode,
		"--instance", netnsName(l.opts.Name, node),
	}
	switch {
	case l.store != nil:
		argv = append(argv, l.store.AgentArgs(node)...)
	case len(l.opts.AgentSource) > 0:
		argv = append(argv, l.opts.AgentSource...)
	default:
		argv = append(argv, "--source", "file:"+l.ManifestDir())
	}
	if mode == ModeEBPF {
		cgroup, err := l.NodeCgroup(node)
		if err != nil {
			return nil, err
		}
		argv = append(argv, "--cgroup", cgroup)
	}
	return append(argv, args...), nil
}

// flagValue returns the last value of a flag in args, in either spelling.
func flagValue(args []string, name, value string) string {
	for i, arg := range args {
		if rest, ok := strings.CutPrefix(arg, name+"="); ok {
			value = rest
		} else if arg == name && i+1 < len(args) {
			value = args[i+1]
		}
	}
	return value
}

// StartAgents starts the agent of every node, as [Lab.StartAgent] does.
func (l *Lab) StartAgents(ctx context.Context, extraArgs ...string) error {
	for _, node := range PlacesOf(Node) {
		if err := l.StartAgent(ctx, node.Name, extraArgs...); err != nil {
			return err
		}
	}
	return nil
}

// StopAgent sends SIGTERM to a node's agent and waits for its end; see
// [Lab.Stop].
func (l *Lab) StopAgent(node string) error { return l.Stop(agentName(node)) }

// RestartAgent stops a node's agent, if one runs, and starts one: in the given mode, or if
// that is empty in the one that the last had. extraArgs come last.
func (l *Lab) RestartAgent(ctx context.Context, node, mode string, extraArgs ...string) error {
	if _, before, err := l.Agent(node); err == nil && mode == "" {
		mode = before
	}
	if err := l.StopAgent(node); err != nil {
		return err
	}
	if mode != "" {
		extraArgs = append([]string{"--mode", mode}, extraArgs...)
	}
	return l.StartAgent(ctx, node, extraArgs...)
}

// Instance is the name of a node's agent, by which it is asked; for a Pod, that of its
// node's, and empty for any other place.
func (l *Lab) Instance(place string) string {
	p, err := FindPlace(place)
	switch {
	case err != nil:
		return ""
	case p.Kind == Node:
		return netnsName(l.opts.Name, p.Name)
	case p.Kind == Pod:
		return netnsName(l.opts.Name, p.Node)
	}
	return ""
}

// KillAgent sends SIGKILL to a node's agent and waits for its end.
func (l *Lab) KillAgent(node string) error { return l.Kill(agentName(node)) }

// Agent returns the agent last started on a node, and its mode.
func (l *Lab) Agent(node string) (p Process, mode string, err error) {
	p, err = l.Process(agentName(node))
	return p, flagValue(p.Argv, "--mode", ""), err
}

// AgentLog returns what the agents of a node, past ones too, have written. It
// is empty if there was none.
func (l *Lab) AgentLog(node string) string {
	data, _ := os.ReadFile(l.LogPath(agentName(node))) // no file: no agent
	return string(data)
}
