package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/admin"
	"github.com/nodeproxy/nodeproxy/dataplane/ebpf"
)

// pieces are what a bundle holds: of the agent, if one answers, and of the kernel.
func (a *asking) pieces(cmd *cobra.Command) []piece {
	quiet := *cmd // what would be said on standard error is in the bundle
	quiet.SetErr(io.Discard)
	out := []piece{
		{"version.json", "the program that wrote this", func(context.Context) ([]byte, error) { return asJSON(thisVersion()) }},
		{"agent/status.json", "nodeproxy status", func(context.Context) ([]byte, error) {
			s, err := a.status(&quiet)
			return jsonOr(s, err)
		}},
		{"agent/services.json", "nodeproxy get services", rowsOf(a, &quiet, admin.PathServices, admin.Kernel.Services)},
		{"agent/backends.json", "nodeproxy get backends", rowsOf(a, &quiet, admin.PathBackends, admin.Kernel.Backends)},
		{"agent/counts.json", "what was counted by Service and backend", rowsOf(a, &quiet, admin.PathCounts, admin.Kernel.Counts)},
		{"agent/verify.json", "nodeproxy verify: where the kernel differs", func(ctx context.Context) ([]byte, error) {
			found, err := a.verify(ctx)
			return jsonOr(found, err)
		}},
		{"agent/process.txt", "the agent's command line, state and limits", a.process},
		{"agent/metrics.txt", "its metrics, at the default address", fetchOf("http://127.0.0.1:10249/metrics")},
		{"agent/configz.json", "its flags, at the default address", fetchOf("http://127.0.0.1:10249/configz")},
		{"agent/healthz.json", "its answer to load balancers, at the default address", fetchOf("http://127.0.0.1:10256/healthz")},
		{"agent/journal.txt", "the last lines of its log, where systemd runs it", outputOf("journalctl", "--unit=nodeproxy", "--lines=2000", "--no-pager", "--output=short-iso")},
		{"kernel/features.json", "nodeproxy check", func(context.Context) ([]byte, error) { return asJSON(featuresFound()) }},
		{"kernel/system.txt", "kernel, distribution, memory, CPUs, uptime", systemFacts},
		{"kernel/sysctls.txt", "settings of forwarding, conntrack and BPF", sysctls},
		{"kernel/modules.txt", "modules", readOf("/proc/modules")},
		{"kernel/mounts.txt", "mounts of BPF and cgroup file systems, and of /run", mounts},
		{"kernel/pinned.txt", "names of pinned maps and programs", pinned},
	}
	for _, program := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		out = append(out, piece{"kernel/" + program + ".txt", "rules of every program on the node", outputOf(program, "-c")})
	}
	for name, args := range ipCommands {
		out = append(out, piece{"kernel/ip-" + name + ".txt", "ip " + strings.Join(args, " "), outputOf("ip", args...)})
	}
	slices.SortStableFunc(out, func(a, b piece) int { return strings.Compare(a.name, b.name) })
	return append(out, piece{"kernel/nft-tables.txt", "tables of nftables, without what is in them", outputOf("nft", "list", "tables")})
}

var ipCommands = map[string][]string{
	"link": {"-details", "-statistics", "link"}, "address": {"address"}, "rule": {"rule"}, "rule6": {"-6", "rule"},
	"route": {"route", "show", "table", "all"}, "route6": {"-6", "route", "show", "table", "all"},
}

func asJSON(v any) ([]byte, error) { return json.MarshalIndent(v, "", "  ") }

func jsonOr(v any, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return asJSON(v)
}

// rowsOf asks the agent for rows, or reads the kernel where none answers.
func rowsOf[T any](a *asking, cmd *cobra.Command, path string, read func(admin.Kernel, context.Context) ([]T, error)) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		var rows []T
		err := admin.Get(ctx, admin.Socket(a.instance), path, nil, &rows)
		if errors.Is(err, admin.ErrNoAgent) {
			var kernel admin.Kernel
			if kernel, _, err = a.remains(cmd, err); err == nil {
				rows, err = read(kernel, ctx)
			}
		}
		return jsonOr(rows, err)
	}
}

// process tells of the agent's process what /proc does, but for its environment.
func (a *asking) process(ctx context.Context) ([]byte, error) {
	var s admin.Status
	if err := admin.Get(ctx, admin.Socket(a.instance), "/v1/status", nil, &s); err != nil {
		return nil, err
	}
	dir := fmt.Sprintf("/proc/%d/", s.PID)
	argv, err := os.ReadFile(dir + "cmdline")
	if err != nil {
		return nil, fmt.Errorf("read the agent's command line: %w (its process is in another PID namespace?)", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n\n", bytes.ReplaceAll(bytes.TrimRight(argv, "\x00"), []byte{0}, []byte{' '}))
	for _, name := range []string{"status", "limits", "cgroup"} {
		data, err := os.ReadFile(dir + name)
		if err != nil {
			data = fmt.Appendln(nil, err)
		}
		fmt.Fprintf(&b, "# %s\n%s\n", name, data)
	}
	return b.Bytes(), nil
}

func fetchOf(url string) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		resp, err := (&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}}).Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		return io.ReadAll(io.LimitReader(resp.Body, pieceLimit))
	}
}

func outputOf(program string, args ...string) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, piecePatience)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // and what it has started
		cmd.WaitDelay = time.Second
		out, err := cmd.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", program, err, out)
		}
		return out, nil
	}
}

func readOf(path string) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return os.ReadFile(path) }
}

// systemFacts are what a kernel's bug depends on.
func systemFacts(context.Context) ([]byte, error) {
	var b bytes.Buffer
	for _, path := range []string{"/proc/version", "/etc/os-release", "/proc/uptime", "/proc/loadavg", "/proc/meminfo",
		"/proc/sys/net/netfilter/nf_conntrack_count", "/sys/devices/system/cpu/online", "/sys/kernel/security/lsm"} {
		data, err := os.ReadFile(path)
		if err != nil {
			data = fmt.Appendln(nil, err)
		}
		fmt.Fprintf(&b, "# %s\n%s\n", path, data)
	}
	return b.Bytes(), nil
}

// sysctlPatterns are below /proc/sys.
var sysctlPatterns = []string{"net/netfilter/nf_conntrack_*", "net/ipv4/conf/*/rp_filter", "net/ipv[46]/conf/*/forwarding",
	"net/ipv4/conf/*/route_localnet", "net/ipv4/conf/*/arp_*", "net/ipv4/ip_forward", "net/ipv4/ip_local_port_range", "net/ipv4/tcp_*reuse*",
	"net/bridge/*", "net/core/bpf_*", "kernel/unprivileged_bpf_disabled", "net/ipv4/vs/conn*"}

func sysctls(context.Context) ([]byte, error) {
	var b bytes.Buffer
	for _, pattern := range sysctlPatterns {
		paths, _ := filepath.Glob("/proc/sys/" + pattern) // the patterns are right
		for _, path := range paths {
			if data, err := os.ReadFile(path); err == nil {
				fmt.Fprintf(&b, "%s = %s\n", strings.TrimPrefix(path, "/proc/sys/"), bytes.TrimSpace(data))
			}
		}
	}
	return b.Bytes(), nil
}

// mounts are those that matter here: options of others may hold a password.
func mounts(context.Context) ([]byte, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	var b bytes.Buffer
	for line := range bytes.Lines(data) {
		words := strings.Fields(string(line))
		i := slices.Index(words, "-")
		if i < 0 || i+1 >= len(words) || len(words) < 5 {
			continue
		}
		if kind := words[i+1]; slices.Contains([]string{"bpf", "cgroup", "cgroup2", "nsfs"}, kind) || words[4] == "/run" || words[4] == "/" {
			fmt.Fprintln(&b, strings.Join(words[:i+2], " "))
		}
	}
	return b.Bytes(), err
}

// pinned names what is pinned, of every instance.
func pinned(context.Context) ([]byte, error) {
	var b bytes.Buffer
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/bpf", &fs); err != nil || fs.Type != unix.BPF_FS_MAGIC {
		return []byte("no BPF file system at /sys/fs/bpf\n"), nil
	}
	err := filepath.WalkDir("/sys/fs/bpf", func(path string, _ os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) { // gone meanwhile
			return nil
		}
		fmt.Fprintln(&b, path)
		return err
	})
	return b.Bytes(), err
}

// featuresFound are what ebpf mode finds here.
func featuresFound() (out []feature) {
	for _, f := range append(ebpf.Probe(), ebpf.ProbeCgroup("")) {
		out = append(out, featureOf(f))
	}
	return out
}
