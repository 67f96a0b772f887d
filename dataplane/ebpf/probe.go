package ebpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Feature is something that the mode uses of the kernel.
type Feature struct {
	Name     string
	Present  bool
	Required bool   // without it the mode does not work
	Fallback string // what is used instead; empty if present or required
	Err      error  // why it is missing, where the kernel said so
}

// kernelFeatures are the answers that change what is loaded.
type kernelFeatures struct {
	tcx      bool
	fibFlags uint32
	// fibSource asks a lookup of a route for its source address.
	fibSource uint32
	csumIPv6  uint64
	// conntrack tells that the programs may use conntrack's functions, and do.
	conntrack bool
}

const (
	fibSource    = 1 << 4 // BPF_FIB_LOOKUP_SRC, Linux 6.7
	fibSkipNeigh = 1 << 2 // BPF_FIB_LOOKUP_SKIP_NEIGH, Linux 6.3
	csumIPv6     = 1 << 7 // BPF_F_IPV6, Linux 6.16
)

// Probe asks the kernel for everything that the mode uses.
func Probe() []Feature {
	out := []Feature{
		required("cgroup socket hooks", features.HaveProgramType(ebpf.CGroupSockAddr)),
		required("tc programs", features.HaveProgramType(ebpf.SchedCLS)),
		required("syscall programs (5.14)", features.HaveProgramType(ebpf.Syscall)),
		required("type information of the kernel (BTF)", haveBTF()),
		required("socket storage", features.HaveMapType(ebpf.SkStorage)),
		required("bpf_set_retval in socket hooks (6.1)", features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval)),
		required("bpf_get_netns_cookie", features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie)),
		required("bpf_fib_lookup", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnFibLookup)),
		required("bpf_redirect_neigh", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectNeigh)),
		required("bpf_loop (5.17)", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnLoop)),
		required(conntrackFunctions, probeConntrack()),
		required("bpf_for_each_map_elem", features.HaveProgramHelper(ebpf.Syscall, asm.FnForEachMapElem)),
	}
	optional := func(name, fallback string, err error) {
		f := Feature{Name: name, Present: err == nil, Err: err}
		if err != nil {
			f.Fallback = fallback
		}
		out = append(out, f)
	}
	optional("TCX (6.6)", "clsact filters", haveTCX())
	optional("BPF_FIB_LOOKUP_SKIP_NEIGH (6.3)", "one more neighbour lookup per packet", haveHelperFlag(fibProbe(fibSkipNeigh)))
	optional("BPF_F_IPV6 in checksum helpers (6.16)",
		"receivers of IPv6 may have to check sums again that hardware had checked", haveHelperFlag(csumProbe))
	optional("XDP, for --xdp", "packets are forwarded at tc", haveXDP())
	optional("ending sockets of others (CONFIG_INET_DIAG_DESTROY)",
		"connected UDP sockets keep a backend that is gone", haveDestroy())
	return out
}

func required(name string, err error) Feature {
	return Feature{Name: name, Present: err == nil, Required: true, Err: err}
}

// Missing returns an error that names each required feature that is not there.
func Missing(fs []Feature) error {
	var errs []error
	for _, f := range fs {
		if f.Required && !f.Present {
			errs = append(errs, fmt.Errorf("kernel lacks %s: %w", f.Name, f.Err))
		}
	}
	return errors.Join(errs...)
}

func probeFeatures(o *Options) kernelFeatures {
	f := kernelFeatures{tcx: !o.NoTCX && haveTCX() == nil}
	if haveHelperFlag(fibProbe(fibSkipNeigh)) == nil {
		f.fibFlags = fibSkipNeigh
	}
	if haveHelperFlag(fibProbe(fibSource)) == nil {
		f.fibSource = fibSource
	}
	if haveHelperFlag(csumProbe) == nil {
		f.csumIPv6 = csumIPv6
	}
	return f
}

// conntrackFunctions is what the stack way needs of the kernel.
const conntrackFunctions = "conntrack's functions for programs (6.1)"

// haveConntrack looks for the newest of conntrack's functions for programs: in the
// kernel's type information, or that of the module that has it, once that is loaded.
func haveConntrack() error {
	const name = "bpf_ct_set_nat_info"
	var found *btf.Func
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return fmt.Errorf("type information of the kernel: %w", err)
	}
	if kernel.TypeByName(name, &found) == nil {
		return nil
	}
	module, err := btf.LoadKernelModuleSpec("nf_nat")
	if err != nil {
		return fmt.Errorf("%s: type information of nf_nat: %w", name, err)
	}
	if err := module.TypeByName(name, &found); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// probeConntrack is loadConntrack for a while: what it adds to the kernel, but for
// modules, is gone afterwards.
func probeConntrack() error {
	const instance = "probe"
	if haveConntrack() == nil {
		return nil
	}
	err := loadConntrack(&Options{Instance: instance})
	return errors.Join(err, removeHooks(instance))
}

// loadConntrack has the kernel load the modules of conntrack and NAT, if it has
// them as such, and reports whether programs may call them. Our nftables table asks
// for them.
func loadConntrack(o *Options) error {
	if _, err := ensureHooks(o.Instance); err != nil {
		return err
	}
	return haveConntrack()
}

// featuresFor asks the kernel what has to be known before the programs are loaded.
// The stack way, if it is asked for by name, has to be there.
func featuresFor(o *Options) (kernelFeatures, error) {
	f := probeFeatures(o)
	if o.untracked {
		return f, nil
	}
	err := loadConntrack(o)
	f.conntrack = err == nil
	if err != nil && o.Forwarding == ForwardingStack {
		return f, fmt.Errorf("forwarding by the stack: %w", err)
	}
	if err != nil {
		o.Logger.Info("conntrack does not own flows", "error", err)
	}
	return f, nil
}

// haveBTF is asked for by the iterators over sockets.
func haveBTF() error {
	_, err := btf.LoadKernelSpec()
	return err
}

// haveTCX asks for a query of an interface that need not exist: only a kernel
// that knows TCX looks for it.
func haveTCX() error {
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	return err
}

// haveDestroy asks for the end of a socket that cannot be.
func haveDestroy() error {
	return destroy(bpfGone{Proto: unix.IPPROTO_UDP})
}

// haveHelperFlag runs a program that returns what a helper said about a flag.
func haveHelperFlag(insns asm.Instructions) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: insns, License: "Dual BSD/GPL"})
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer prog.Close()
	packet := make([]byte, 64)
	packet[12], packet[13] = 0x08, 0x00
	ret, err := prog.Run(&ebpf.RunOptions{Data: packet})
	if err != nil {
		return fmt.Errorf("probe: run: %w", err)
	}
	if int32(ret) == -22 { // EINVAL
		return ebpf.ErrNotSupported
	}
	return nil
}

// fibProbe calls bpf_fib_lookup with a flag and an unknown family, which is only
// looked at after the flags: EAFNOSUPPORT is a yes.
func fibProbe(flag int32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R0, 0),
		asm.StoreMem(asm.RFP, -64, asm.R0, asm.DWord), asm.StoreMem(asm.RFP, -56, asm.R0, asm.DWord),
		asm.StoreMem(asm.RFP, -48, asm.R0, asm.DWord), asm.StoreMem(asm.RFP, -40, asm.R0, asm.DWord),
		asm.StoreMem(asm.RFP, -32, asm.R0, asm.DWord), asm.StoreMem(asm.RFP, -24, asm.R0, asm.DWord),
		asm.StoreMem(asm.RFP, -16, asm.R0, asm.DWord), asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -64),
		asm.Mov.Imm(asm.R3, 64),
		asm.Mov.Imm(asm.R4, flag),
		asm.FnFibLookup.Call(),
		asm.Return(),
	}
}

// csumProbe calls bpf_l4_csum_replace with the flag on a field in the packet.
var csumProbe = asm.Instructions{
	asm.Mov.Imm(asm.R2, 40),
	asm.Mov.Imm(asm.R3, 0),
	asm.Mov.Imm(asm.R4, 0),
	asm.Mov.Imm(asm.R5, csumIPv6|1<<4), // with BPF_F_PSEUDO_HDR
	asm.FnL4CsumReplace.Call(),
	asm.Return(),
}
