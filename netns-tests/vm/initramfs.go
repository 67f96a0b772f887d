package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// programs are taken along with the libraries that they load, where they are
// installed here.
var programs = []string{
	"/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi", "/usr/sbin/conntrack", "/usr/sbin/nft", "/usr/bin/ip", "/usr/bin/nsenter", "/usr/bin/unshare", "/usr/bin/iperf3",
}

// plugins are loaded by name when they are needed.
const plugins = "/usr/lib/x86_64-linux-gnu/xtables/*.so"

// busybox is the shell and all small tools of the machine.
const busybox = "/bin/busybox"

// archive is an initramfs that is being written.
type archive struct {
	w    *cpio.Writer
	seen map[string]bool
	err  error
}

// writeInitramfs writes the file system that a kernel boots into.
func writeInitramfs(path string, k *fetched, o *options, tests []test) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	a := &archive{w: cpio.NewWriter(f), seen: map[string]bool{}}
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "run", "etc", "root", "var/lock"} {
		a.dir(dir)
	}
	a.file("bin/busybox", busybox)
	a.file("usr/bin/nodeproxy", filepath.Join(o.work, "nodeproxy"))
	for _, t := range tests {
		a.file("tests/"+t.name, t.path)
	}
	files, err := k.closure(modules)
	if err != nil {
		return fmt.Errorf("modules: %w", err)
	}
	for _, m := range files {
		a.file("modules/"+filepath.Base(m), filepath.Join(k.modules, m))
	}
	for _, p := range programs {
		a.program(p)
	}
	libs, _ := filepath.Glob(plugins)
	for _, p := range libs {
		a.file(p[1:], p)
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, b := range []string{"nft", "legacy"} {
			for _, suffix := range []string{"", "-save", "-restore"} {
				a.link("usr/sbin/"+name+"-"+b+suffix, "xtables-"+b+"-multi")
			}
		}
		for _, suffix := range []string{"", "-save", "-restore"} {
			a.link("usr/sbin/"+name+suffix, "xtables-nft-multi")
		}
	}
	a.text("init", 0o755, initScript(files, tests))
	if a.err != nil {
		return a.err
	}
	return a.w.Close()
}

// initScript is what runs as process 1. It marks what the tests print, so that
// the outcome can be told from the rest.
func initScript(moduleFiles []string, tests []test) string {
	var s strings.Builder
	s.WriteString(`#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/bin NODEPROXY_TEST_ROOT=1 NODEPROXY_BINARY=/usr/bin/nodeproxy HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
`)
	for _, m := range moduleFiles {
		fmt.Fprintf(&s, "insmod /modules/%s 2>/dev/null\n", filepath.Base(m))
	}
	s.WriteString("echo \"VM-BOOTED $(uname -r)\"\n")
	for _, t := range tests {
		fmt.Fprintf(&s, "echo VM-BEGIN %s\n/tests/%s -test.v -test.timeout=30m %s\necho VM-END %s $?\n", t.name, t.name, t.args, t.name)
	}
	s.WriteString("poweroff -f\n")
	return s.String()
}

func (a *archive) add(h *cpio.Header, body io.Reader) {
	if a.err != nil || a.seen[h.Name] {
		return
	}
	a.seen[h.Name] = true
	if parent := filepath.Dir(h.Name); parent != "." {
		a.dir(parent)
	}
	if a.err = a.w.WriteHeader(h); a.err == nil && body != nil {
		_, a.err = io.Copy(a.w, body)
	}
}

func (a *archive) dir(name string) {
	a.add(&cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755}, nil)
}

func (a *archive) text(name string, mode cpio.FileMode, text string) {
	a.add(&cpio.Header{Name: name, Mode: cpio.TypeReg | mode, Size: int64(len(text))}, strings.NewReader(text))
}

func (a *archive) link(name, to string) {
	a.add(&cpio.Header{Name: name, Mode: cpio.TypeSymlink | 0o777, Size: int64(len(to))}, strings.NewReader(to))
}

func (a *archive) file(name, from string) {
	f, err := os.Open(from)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		a.err = err
		return
	}
	a.add(&cpio.Header{Name: name, Mode: cpio.TypeReg | 0o755, Size: info.Size()}, f)
}

// program adds a program of this machine and the libraries that ldd lists.
func (a *archive) program(path string) {
	if _, err := os.Stat(path); err != nil {
		return // what is not here is not used by these tests
	}
	a.file(path[1:], path)
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		a.err = fmt.Errorf("ldd %s: %w", path, err)
		return
	}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "/") {
			a.file(word[1:], word)
		}
	}
}
