package ebpf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
)

// On the stack way, Service flows pass the FORWARD chain of every program that has one. Where
// that drops by default, kube-proxy accepts what it has masqueraded, and what
// conntrack knows (KUBE-FORWARD); so do we, in a chain of ours. It is there only
// where there is a FORWARD chain of iptables: nothing in nf_tables can overrule
// another table's drop.

// acceptChain is not called as the chains of iptables mode are, which take all of
// their prefix for theirs.
const acceptChain = "NODEPROXYEBPF-FORWARD"

// acceptRules are what of Service flows is accepted: answers; flows whose client is
// hidden, since no rule could tell them; and what the host itself sends, which
// comes in by lo for its first packet (send_again of bpf/ct_new.h).
var acceptRules = [][]string{
	{"-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
	{"-m", "conntrack", "--ctstate", "DNAT", "-m", "conntrack", "--ctstate", "SNAT", "-j", "ACCEPT"},
	{"-i", "lo", "-m", "conntrack", "--ctstate", "DNAT", "-j", "ACCEPT"},
}

// tool is one iptables command.
type tool struct {
	path   string
	family iptables.Protocol
}

var tools = [2]map[bool]tool{ // by family, and whether legacy
	{false: {"iptables-nft", iptables.ProtocolIPv4}, true: {"iptables-legacy", iptables.ProtocolIPv4}},
	{false: {"ip6tables-nft", iptables.ProtocolIPv6}, true: {"ip6tables-legacy", iptables.ProtocolIPv6}},
}

// forwardTools are the commands for the FORWARD chains that there are in this
// network namespace.
func forwardTools() (out []tool, err error) {
	nft, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	chains, err := nft.ListChains()
	if err != nil && !lacksNFT(err) {
		return nil, fmt.Errorf("nftables: list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name == "filter" && c.Name == "FORWARD" {
			for f, family := range hookFamilies {
				if c.Table.Family == family {
					out = append(out, tools[f][false])
				}
			}
		}
	}
	for f, where := range legacyTables {
		names, err := os.ReadFile(where[0])
		if err == nil && strings.Contains("\n"+string(names), "\nfilter\n") {
			out = append(out, tools[f][true])
		}
	}
	return out, nil
}

// open returns the command, or nil if the machine does not have it.
func (t tool) open() (*iptables.IPTables, error) {
	path, err := exec.LookPath(t.path)
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", t.path, err)
	}
	ipt, err := iptables.New(iptables.IPFamily(t.family), iptables.Path(path), iptables.Timeout(5))
	if err != nil {
		return nil, fmt.Errorf("probe %s: %w", t.path, err)
	}
	return ipt, nil
}

// ensureAccepted puts our chain where there is a FORWARD chain of iptables.
func ensureAccepted() error {
	wanted, err := forwardTools()
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range wanted {
		if err := t.accept(); err != nil {
			errs = append(errs, fmt.Errorf("%s: accept Service flows in FORWARD: %w", t.path, err))
		}
	}
	return errors.Join(errs...)
}

func (t tool) accept() error {
	ipt, err := t.open()
	if ipt == nil {
		return err
	}
	has, err := ipt.ChainExists("filter", acceptChain)
	if err != nil {
		return err
	}
	if !has {
		if err := ipt.NewChain("filter", acceptChain); err != nil {
			return err
		}
	}
	for _, rule := range acceptRules {
		if err := ipt.AppendUnique("filter", acceptChain, rule...); err != nil {
			return err
		}
	}
	jump := []string{"-j", acceptChain}
	if has, err := ipt.Exists("filter", "FORWARD", jump...); err != nil || has {
		return err
	}
	place, err := behindJudges(ipt)
	if err != nil {
		return err
	}
	return ipt.Insert("filter", "FORWARD", place, jump...)
}

// behindJudges is the place in FORWARD behind the jumps to chains of others with which
// it begins: policy engines judge there, and what they forbid we must not accept.
func behindJudges(ipt *iptables.IPTables) (int, error) {
	rules, err := ipt.List("filter", "FORWARD")
	if err != nil {
		return 0, err
	}
	chains, err := ipt.ListChains("filter")
	if err != nil {
		return 0, err
	}
	place := 1
	for _, rule := range rules {
		fields := strings.Fields(rule)
		if len(fields) == 0 || fields[0] != "-A" {
			continue // the chain's policy
		}
		at := slices.Index(fields, "-j")
		if at < 0 || at+1 == len(fields) || !slices.Contains(chains, fields[at+1]) {
			break
		}
		place++
	}
	return place, nil
}

// removeAccepted takes our chain away again, wherever it is.
func removeAccepted() error {
	there, err := forwardTools()
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range there {
		ipt, err := t.open()
		if err != nil {
			errs = append(errs, err)
		}
		if ipt == nil {
			continue
		}
		has, err := ipt.ChainExists("filter", acceptChain)
		if err == nil && has {
			err = errors.Join(ipt.DeleteIfExists("filter", "FORWARD", "-j", acceptChain), ipt.ClearAndDeleteChain("filter", acceptChain))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: remove chain %s: %w", t.path, acceptChain, err))
		}
	}
	return errors.Join(errs...)
}
