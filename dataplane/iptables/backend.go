package iptables

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"

	"github.com/nodeproxy/nodeproxy/dataplane/command"
	"github.com/nodeproxy/nodeproxy/service"
)

// Backend is the kernel interface that iptables speaks to. Rules of the one
// are unseen by the other, so a node must use only one.
type Backend string

// The back ends.
const (
	BackendAuto   Backend = "auto" // the one that the node already uses
	BackendNFT    Backend = "nft"
	BackendLegacy Backend = "legacy"
)

// lockSeconds is how long a command waits for the lock of another program.
const lockSeconds = 5

// kernel runs the commands of one back end and family.
type kernel struct {
	backend       Backend
	family        service.Family
	save, restore string        // paths
	randomFully   bool          // masquerade knows --random-fully
	limit         time.Duration // of a command
	writes        int           // transactions so far
}

func newKernel(ctx context.Context, b Backend, f service.Family) (*kernel, error) {
	name, protocol := "iptables-"+string(b), iptables.ProtocolIPv4
	if f == service.IPv6 {
		name, protocol = "ip6tables-"+string(b), iptables.ProtocolIPv6
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w (install the iptables package)", name, err)
	}
	// The library knows no deadline: a command that hangs is met here.
	if _, err := command.Run(ctx, commandLimit, nil, path, "--version"); err != nil {
		return nil, fmt.Errorf("probe %s: %w", name, err)
	}
	probed, err := iptables.New(iptables.IPFamily(protocol), iptables.Path(path))
	if err != nil {
		return nil, fmt.Errorf("probe %s: %w", name, err)
	}
	return &kernel{backend: b, family: f, save: path + "-save", restore: path + "-restore",
		randomFully: probed.HasRandomFully(), limit: commandLimit}, nil
}

// String names it as messages do: "iptables-nft", "ip6tables-legacy".
func (k *kernel) String() string {
	if k.family == service.IPv6 {
		return "ip6tables-" + string(k.backend)
	}
	return "iptables-" + string(k.backend)
}

// restoreInput applies one transaction, leaving alone what it does not name.
func (k *kernel) restoreInput(ctx context.Context, input []byte) error {
	k.writes++
	_, err := command.Run(ctx, k.limit, input, k.restore, k.restoreArgs()...)
	return err
}

func (k *kernel) restoreArgs() []string {
	args := []string{"--noflush"}
	if k.backend == BackendLegacy { // the lock of nft is the kernel's own
		args = append(args, "--wait", fmt.Sprint(lockSeconds))
	}
	return args
}

// saveTable returns what iptables-save prints of a table.
func (k *kernel) saveTable(ctx context.Context, table string, options ...string) ([]byte, error) {
	out, err := command.Run(ctx, k.limit, nil, k.save, append([]string{"-t", table}, options...)...)
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", table, err)
	}
	return out, nil
}

// savedTable is what of a saved table concerns one owner of chains.
type savedTable struct {
	shapes map[string]uint64   // of the owner's chains
	jumps  map[string][]string // rules of other chains that lead to them, by chain
}

// ours tells our chains from others.
func ours(chain string) bool { return strings.HasPrefix(chain, chainPrefix) }

// parseSave reads the output of iptables-save for one table. Lines that are
// not about the owner's chains are passed over.
func parseSave(out []byte, owned func(chain string) bool) savedTable {
	t := savedTable{shapes: map[string]uint64{}, jumps: map[string][]string{}}
	hashes := map[string]*maphash.Hash{}
	for len(out) > 0 {
		line := out
		if end := bytes.IndexByte(out, '\n'); end >= 0 {
			line, out = out[:end], out[end+1:]
		} else {
			out = nil
		}
		text := string(line)
		switch {
		case strings.HasPrefix(text, ":"):
			if chain, _ := nextWord(text[1:]); owned(chain) {
				h := &maphash.Hash{}
				h.SetSeed(sumSeed)
				hashes[chain] = h
			}
		case strings.HasPrefix(text, "-A "):
			chain, rule := nextWord(text[3:])
			if h := hashes[chain]; h != nil {
				addShape(h, rule)
			} else if owned(jumpTarget(rule)) {
				t.jumps[chain] = append(t.jumps[chain], rule)
			}
		}
	}
	for chain, h := range hashes {
		t.shapes[chain] = h.Sum64()
	}
	return t
}

// leadingJumps counts the rules at the head of a chain that lead to chains of
// others, as iptables-save prints a table. Those that lead to ours count while
// they stand between them.
func leadingJumps(out []byte, chain string) int {
	chains := map[string]bool{}
	count, at := 0, 0
	for line := range bytes.Lines(out) {
		text := strings.TrimSpace(string(line))
		if name, ok := strings.CutPrefix(text, ":"); ok {
			name, _ = nextWord(name)
			chains[name] = true
			continue
		}
		rule, ok := strings.CutPrefix(text, "-A "+chain+" ")
		if !ok {
			continue
		}
		target := jumpTarget(" " + rule)
		if !chains[target] {
			return count
		}
		if at++; !ours(target) {
			count = at
		}
	}
	return count
}

// jumpTarget returns what stands behind -j, or "".
func jumpTarget(rule string) string {
	for rest := rule; rest != ""; {
		var word string
		if word, rest = nextWord(rest); word == "-j" {
			word, _ = nextWord(rest)
			return word
		}
	}
	return ""
}

// Detect finds the back end that the node uses: where our own chains are, or
// else kubelet's, or else where there are more rules, or else what the
// command iptables stands for.
func Detect(ctx context.Context) (Backend, error) {
	rules := map[Backend]int{}
	for _, b := range []Backend{BackendNFT, BackendLegacy} {
		k, err := newKernel(ctx, b, service.IPv4)
		if err != nil {
			continue
		}
		for _, table := range []string{"mangle", "nat", "filter"} {
			if b == BackendLegacy && !k.legacyTableExists(table) {
				continue
			}
			// A table that cannot be read holds no rules.
			out, err := k.saveTable(ctx, table)
			if err != nil {
				continue
			}
			rules[b] += bytes.Count(out, []byte("\n-A "))
			for _, ours := range []string{"\n:" + chainServices + " ", "\n:KUBE-IPTABLES-HINT ", "\n:KUBE-KUBELET-CANARY "} {
				if bytes.Contains(out, []byte(ours)) {
					return b, nil
				}
			}
		}
	}
	switch {
	case rules[BackendLegacy] > rules[BackendNFT]:
		return BackendLegacy, nil
	case rules[BackendNFT] > 0:
		return BackendNFT, nil
	}
	return defaultBackend(ctx)
}

func defaultBackend(ctx context.Context) (Backend, error) {
	out, err := command.Run(ctx, commandLimit, nil, "iptables", "--version")
	if err != nil {
		return "", fmt.Errorf("%w (install the iptables package)", err)
	}
	if bytes.Contains(out, []byte("nf_tables")) {
		return BackendNFT, nil
	}
	return BackendLegacy, nil
}

// legacyTableExists reports whether a legacy table was ever used in this
// network namespace: asking the table itself would make it.
func (k *kernel) legacyTableExists(table string) bool {
	name := "/proc/thread-self/net/ip_tables_names"
	if k.family == service.IPv6 {
		name = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(name)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(names)) {
		if strings.TrimSpace(line) == table {
			return true
		}
	}
	return false
}
