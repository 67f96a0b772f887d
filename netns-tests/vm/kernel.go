package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// modules are loaded in the machine, with all that they depend on, where the
// kernel has them as modules.
var modules = []string{
	"veth", "bridge", "br_netfilter", "dummy", "ipvlan", "sch_ingress", "sch_netem", "cls_bpf", "act_bpf", "sctp", "tun", "inet_diag", "tcp_diag", "udp_diag",
	"nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nf_tables", "nft_compat", "nft_chain_nat",
	"ip_tables", "ip6_tables", "iptable_nat", "iptable_filter", "ip6table_nat", "ip6table_filter",
	"xt_comment", "xt_conntrack", "xt_mark", "xt_statistic", "xt_addrtype", "xt_bpf", "xt_recent", "xt_tcpudp", "xt_sctp",
	"xt_nat", "xt_MASQUERADE", "ipt_REJECT", "ip6t_REJECT", "nft_reject_ipv4", "nft_reject_ipv6", "nft_ct", "nft_masq", "nft_redir",
}

// fetched is an unpacked kernel package.
type fetched struct {
	release string // 6.1.0-50-cloud-amd64
	image   string // path of vmlinuz
	modules string // directory lib/modules/RELEASE
}

var kernelPackage = regexp.MustCompile(`^\s*Depends: (linux-image-\d\S+)$`)

// fetch downloads and unpacks a kernel with apt and dpkg.
func fetch(ctx context.Context, dir, name string) (fetched, error) {
	output := func(cmd *exec.Cmd) (string, error) {
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
		}
		return string(out), nil
	}
	depends, err := output(exec.CommandContext(ctx, "apt-cache", "depends", name))
	if err != nil {
		return fetched{}, err
	}
	for line := range strings.Lines(depends) {
		if m := kernelPackage.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
			name = m[1]
		}
	}
	if _, err := output(exec.CommandContext(ctx, "apt-get", "download", "-qq", name)); err != nil {
		return fetched{}, err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "linux-image-*.deb"))
	if err != nil || len(debs) != 1 {
		return fetched{}, fmt.Errorf("packages %q in %s, want one: %v", debs, dir, err)
	}
	if _, err := output(exec.CommandContext(ctx, "dpkg-deb", "-x", debs[0], dir)); err != nil {
		return fetched{}, err
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fetched{}, fmt.Errorf("kernels %q, want one: %v", images, err)
	}
	k := fetched{release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"), image: images[0]}
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		if d := filepath.Join(dir, lib, k.release); isDir(d) {
			k.modules = d
			base := filepath.Join(dir, strings.TrimSuffix(lib, "lib/modules"))
			_, err = output(exec.CommandContext(ctx, "depmod", "-b", base, k.release))
			return k, err
		}
	}
	return fetched{}, fmt.Errorf("package %s holds no modules", name)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// closure returns the files of the wanted modules and of all that they need,
// relative to the directory of modules, in an order in which they can be
// loaded. Modules that are built in, or that the kernel lacks, are left out.
func (k *fetched) closure(wanted []string) ([]string, error) {
	f, err := os.Open(filepath.Join(k.modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	needs, byName := map[string][]string{}, map[string]string{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		file, deps, ok := strings.Cut(sc.Text(), ":")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(filepath.Base(file), ".")
		byName[strings.ReplaceAll(name, "-", "_")] = file
		needs[file] = strings.Fields(deps)
	}
	var out []string
	var add func(file string)
	add = func(file string) {
		if slices.Contains(out, file) {
			return
		}
		for _, dep := range needs[file] {
			add(dep)
		}
		out = append(out, file)
	}
	for _, name := range wanted {
		if file, ok := byName[name]; ok {
			add(file)
		}
	}
	return out, nil
}
