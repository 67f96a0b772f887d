package netnstests

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"

	seccompfile "github.com/nodeproxy/nodeproxy/deploy/seccomp"
	"github.com/nodeproxy/nodeproxy/lab"
	"github.com/nodeproxy/nodeproxy/lab/labtest"
)

// seccompProfile is one as container runtimes read it, as far as ours goes.
type seccompProfile struct {
	DefaultAction   string
	DefaultErrnoRet uint16
	Syscalls        []struct {
		Names  []string
		Action string
	}
}

// underSeccomp is a process that puts itself under a profile and runs a command, or tries
// what the profile is there to refuse. It returns an exit code.
func underSeccomp(path string, command []string) int {
	err := loadProfile(path)
	if err == nil && command[0] == "probe" {
		err = probeRefused()
	} else if err == nil {
		// unshare --kill-child has asked for this, of a thread that need not be the one that
		// executes the command.
		runtime.LockOSThread()
		if err = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err == nil {
			err = syscall.Exec(command[0], command, os.Environ())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "under seccomp:", err)
		return 1
	}
	return 0
}

// loadProfile puts all threads of this process under a profile. Names that this
// architecture does not have are passed over, as runtimes do.
func loadProfile(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var p seccompProfile
	if err := json.Unmarshal(data, &p); err != nil {
		return fmt.Errorf("read profile: %w", err)
	}
	if p.DefaultAction != "SCMP_ACT_ERRNO" || p.DefaultErrnoRet != 1 {
		return fmt.Errorf("default action %s %d", p.DefaultAction, p.DefaultErrnoRet)
	}
	here, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	policy := seccomp.Policy{DefaultAction: seccomp.ActionErrno}
	for _, group := range p.Syscalls {
		if group.Action != "SCMP_ACT_ALLOW" {
			return fmt.Errorf("action %s", group.Action)
		}
		var names []string
		for _, name := range group.Names {
			if _, ok := here.SyscallNames[name]; ok {
				names = append(names, name)
			}
		}
		policy.Syscalls = append(policy.Syscalls, seccomp.SyscallGroup{Names: names, Action: seccomp.ActionAllow})
	}
	return seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: policy})
}

// probeRefused tries what no agent needs, as root, and wants all of it to be refused.
func probeRefused() error {
	var errs []error
	for name, number := range map[string]uintptr{
		"ptrace": unix.SYS_PTRACE, "add_key": unix.SYS_ADD_KEY, "keyctl": unix.SYS_KEYCTL, "io_uring_setup": unix.SYS_IO_URING_SETUP,
		"userfaultfd": unix.SYS_USERFAULTFD, "process_vm_readv": unix.SYS_PROCESS_VM_READV, "open_by_handle_at": unix.SYS_OPEN_BY_HANDLE_AT,
		"kexec_load": unix.SYS_KEXEC_LOAD, "reboot": unix.SYS_REBOOT, "pivot_root": unix.SYS_PIVOT_ROOT, "delete_module": unix.SYS_DELETE_MODULE,
		"settimeofday": unix.SYS_SETTIMEOFDAY, "swapon": unix.SYS_SWAPON, "mknodat": unix.SYS_MKNODAT, "fsopen": unix.SYS_FSOPEN,
	} {
		// Without sense in the arguments: what is allowed would say EFAULT, EINVAL or the like.
		if _, _, err := unix.Syscall6(number, ^uintptr(0), ^uintptr(0), ^uintptr(0), ^uintptr(0), ^uintptr(0), ^uintptr(0)); err != unix.EPERM {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// Under the profile that its first container has given the kubelet the shipped Pod serves,
// follows changes, answers an operator and cleans up, in both modes, and complains of
// nothing. The Pod that cleans up takes the profile along. What no agent needs is refused,
// also to root.
func TestAgentUnderSeccomp(t *testing.T) {
	labtest.RequireRoot(t)
	t.Parallel()
	profile, err := filepath.Abs("../deploy/seccomp/nodeproxy.json")
	must(t, err)
	for _, mode := range []string{lab.ModeIPTables, lab.ModeEBPF} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := columns[2].up(t, false)
			apply(t, l, find("web"))
			pod := newAgentPod(t)
			said, serves := pod.start(t, l, "node-a", "--mode", mode, "-v", "1")
			if !serves {
				t.Fatal("the agent has ended")
			}
			pod.workUnderSeccomp(t, l)
			if text := said.String(); strings.Contains(text, "not permitted") || strings.Contains(text, "level=WARN") || strings.Contains(text, "level=ERROR") {
				t.Errorf("the agent complains:\n%s", text)
			}
			if installed, err := os.ReadFile(filepath.Join(pod.seccompDir(), "nodeproxy.json")); err != nil || string(installed) != string(seccompfile.Profile) {
				t.Errorf("the profile was not installed: %d bytes, %v", len(installed), err)
			}
			pod.end()
			cleaner := podOfFile(t, "cleanup/daemonset.yaml")
			command := append(cleaner.command(l.Options().Binary, "node-a"), "--instance", l.Netns("node-a"))
			out, err := l.Command(t.Context(), "node-a", cleaner.argv(t, command)...).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "removed") {
				t.Errorf("cleanup: %v\n%s", err, out)
			}
			cleaner.runInit(t, &cleaner.spec.InitContainers[2], l.Options().Binary)
			if left, err := os.ReadDir(cleaner.seccompDir()); err != nil || len(left) > 0 {
				t.Errorf("the kubelet's directory of profiles still has %v, %v", left, err)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		self, err := os.Executable()
		must(t, err)
		l := columns[0].up(t, false)
		if out, err := l.Command(t.Context(), "node-a", self, "under-seccomp", profile, "probe").CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// workUnderSeccomp has the agent follow changes, refuse, and tell what it did.
func (p *agentPod) workUnderSeccomp(t *testing.T, l *lab.Lab) {
	t.Helper()
	eventually(t, patience, func() error { return onNode(t, l, "web node-a", everyPod) })
	apply(t, l, find("empty"))
	eventually(t, patience, func() error { return onNode(t, l, "empty node-a", refused) })
	for _, args := range [][]string{{"status", "--wait", "10s"}, {"verify"}, {"get", "services"}, {"get", "flows"}, {"explain", "10.96.0.1:80"}} {
		argv := append([]string{l.Options().Binary}, args...)
		if out, err := l.Command(t.Context(), "node-a", append(argv, "--instance", l.Netns("node-a"))...).CombinedOutput(); err != nil {
			t.Errorf("nodeproxy %v: %v\n%s", args, err, out)
		}
	}
}
