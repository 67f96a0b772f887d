package ebpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nodeproxy/nodeproxy/dataplane/command"
)

// The stack way needs two things of netfilter in the node's namespace: the hooks of
// NAT, which come with a chain of type nat, and those of conntrack, which come with
// a rule that needs it. A table of ours has both. Its rules drop what conntrack finds
// invalid among the packets that the programs have given the priority PRIORITY_SERVICE
// (to_stack of bpf/ct_new.h), as kube-proxy's KUBE-FORWARD does among all packets, and
// those for which conntrack had no room (ask_for_room).

var hookFamilies = [2]nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}

// The chains of our table, by what they are there for.
const (
	natChain     = "nat-prerouting"
	invalidChain = "drop-invalid"
	// acceptLocalChain is empty: it says that we have set acceptLocal.
	acceptLocalChain = "lo-accept-local-set"
)

// acceptLocal lets IPv4 packets with a source of this host in by the loopback
// device, where send_again of bpf/ct_new.h has them arrive a second time.
const acceptLocal = "/proc/sys/net/ipv4/conf/lo/accept_local"

// hooksTable names our table.
func hooksTable(instance string) string {
	if instance == "default" {
		return "nodeproxy"
	}
	return "nodeproxy-" + instance
}

// ensureHooks makes the tables of an instance complete, in the calling thread's
// network namespace. It reports whether something was missing.
func ensureHooks(instance string) (missing bool, err error) {
	nft, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	for _, family := range hookFamilies {
		has, err := hasHooks(nft, family, hooksTable(instance))
		if err != nil {
			return missing, err
		}
		if has {
			continue
		}
		missing = true
		addHooks(nft, family, hooksTable(instance))
		if family == nftables.TableFamilyIPv4 {
			if err := setAcceptLocal(nft, hooksTable(instance)); err != nil {
				return missing, err
			}
		}
		if err := nft.Flush(); err != nil {
			return missing, fmt.Errorf("nftables: add table %s: %w", hooksTable(instance), err)
		}
	}
	return missing, nil
}

// lacksNFT reports whether an error says that the kernel has no nf_tables.
func lacksNFT(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// hasHooks reports whether a table has its chains, and the rule.
func hasHooks(nft *nftables.Conn, family nftables.TableFamily, table string) (bool, error) {
	chains, err := nft.ListChainsOfTableFamily(family)
	if err != nil {
		return false, fmt.Errorf("nftables: list chains: %w", err)
	}
	var nat, ct bool
	for _, c := range chains {
		if c.Table.Name != table {
			continue
		}
		switch c.Name {
		case natChain:
			nat = true
		case invalidChain:
			rules, err := nft.GetRules(c.Table, c)
			if err != nil {
				return false, fmt.Errorf("nftables: list rules of %s: %w", c.Name, err)
			}
			ct = len(rules) == len(invalidRules())
		}
	}
	return nat && ct, nil
}

// addHooks makes a table anew; what is left of one goes in the same transaction.
func addHooks(nft *nftables.Conn, family nftables.TableFamily, table string) {
	t := nft.AddTable(&nftables.Table{Family: family, Name: table})
	nft.DelTable(t)
	t = nft.AddTable(&nftables.Table{Family: family, Name: table})
	accept := nftables.ChainPolicyAccept
	nft.AddChain(&nftables.Chain{Table: t, Name: natChain, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest, Policy: &accept})
	invalid := nft.AddChain(&nftables.Chain{Table: t, Name: invalidChain, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle, Policy: &accept})
	for _, exprs := range invalidRules() {
		nft.AddRule(&nftables.Rule{Table: t, Chain: invalid, Exprs: exprs})
	}
}

// invalidRules are those of invalidChain, as nft writes them. All other packets meet the first only.
//
//	meta priority & 0xfffffffe != PRIORITY_SERVICE return
//	meta priority PRIORITY_NO_ROOM counter drop
//	ct state invalid counter drop
//	meta priority set 0
func invalidRules() [][]expr.Any {
	noRoom := binary.NativeEndian.AppendUint32(nil, uint32(bpfPacketPriorityPRIORITY_NO_ROOM))
	sign := binary.NativeEndian.AppendUint32(nil, uint32(bpfPacketPriorityPRIORITY_SERVICE))
	invalid := binary.NativeEndian.AppendUint32(nil, expr.CtStateBitINVALID)
	none := make([]byte, 4)
	both := binary.NativeEndian.AppendUint32(nil, ^uint32(1)) // the two priorities differ in one bit
	return [][]expr.Any{
		{&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: both, Xor: none},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: sign}, &expr.Verdict{Kind: expr.VerdictReturn}},
		{&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: noRoom},
			&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}},
		{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: invalid, Xor: none},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: none}, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}},
		{&expr.Immediate{Register: 1, Data: none}, &expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1}},
	}
}

// setAcceptLocal sets acceptLocal, and notes in the table that it was not set.
func setAcceptLocal(nft *nftables.Conn, table string) error {
	is, err := os.ReadFile(acceptLocal)
	if err == nil && strings.TrimSpace(string(is)) == "0" {
		nft.AddChain(&nftables.Chain{Table: &nftables.Table{Family: nftables.TableFamilyIPv4, Name: table}, Name: acceptLocalChain})
		err = os.WriteFile(acceptLocal, []byte("1"), 0)
	}
	if err != nil {
		return fmt.Errorf("let the host's packets in by lo: %w", err)
	}
	return nil
}

// removeHooks removes the tables of an instance, if they are there, and takes back
// what setAcceptLocal did.
func removeHooks(instance string) error {
	nft, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	name := hooksTable(instance)
	for _, family := range hookFamilies {
		tables, err := nft.ListTablesOfFamily(family)
		if lacksNFT(err) {
			return nil // no nf_tables, no table
		}
		if err != nil {
			return fmt.Errorf("nftables: list tables: %w", err)
		}
		for _, t := range tables {
			if t.Name != name {
				continue
			}
			if family == nftables.TableFamilyIPv4 {
				if err := unsetAcceptLocal(nft, t); err != nil {
					return err
				}
			}
			nft.DelTable(t)
		}
	}
	if err := nft.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("nftables: remove table %s: %w", name, err)
	}
	return nil
}

func unsetAcceptLocal(nft *nftables.Conn, t *nftables.Table) error {
	chains, err := nft.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return fmt.Errorf("nftables: list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name == t.Name && c.Name == acceptLocalChain {
			if err := os.WriteFile(acceptLocal, []byte("0"), 0); err != nil {
				return fmt.Errorf("keep the host's packets from coming in by lo: %w", err)
			}
		}
	}
	return nil
}

// passedBy are the hooks that a packet on the fast way does not meet.
var passedBy = map[nftables.ChainHook]string{
	*nftables.ChainHookPrerouting: "prerouting", *nftables.ChainHookForward: "forward", *nftables.ChainHookPostrouting: "postrouting",
}

// others is what other programs have in netfilter.
type others struct {
	// chains are the names of those that a packet meets on the stack way and not on
	// the fast one, and that have rules or a policy of their own.
	chains []string
	// nat tells that one of them translates what leaves the node.
	nat bool
	// older are the older tables filter, by family, where there are any.
	older [2]*filterTable
}

// lookForOthers looks into nf_tables and the older tables of iptables.
func lookForOthers(ctx context.Context) (o others, err error) {
	if err := o.addNFT(); err != nil {
		return o, err
	}
	return o, o.addLegacy(ctx)
}

func (o *others) addNFT() error {
	nft, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	chains, err := nft.ListChains()
	if lacksNFT(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("nftables: list chains: %w", err)
	}
	for _, c := range chains {
		if !isPassedBy(c) || isHooksTable(c.Table.Name) {
			continue
		}
		rules, err := nft.GetRules(c.Table, c)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("nftables: list rules of %s %s: %w", c.Table.Name, c.Name, err)
		}
		if len(withoutOurs(rules)) > 0 || c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			o.chains = append(o.chains, fmt.Sprintf("nft %s %s %s", familyNames[c.Table.Family], c.Table.Name, c.Name))
			o.nat = o.nat || c.Type == nftables.ChainTypeNAT && *c.Hooknum == *nftables.ChainHookPostrouting
		}
	}
	return nil
}

// withoutOurs leaves out the jump to our own chain.
func withoutOurs(rules []*nftables.Rule) []*nftables.Rule {
	return slices.DeleteFunc(rules, func(r *nftables.Rule) bool {
		return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
			v, ok := e.(*expr.Verdict)
			return ok && v.Chain == acceptChain
		})
	})
}

var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

func isPassedBy(c *nftables.Chain) bool {
	if c.Hooknum == nil || familyNames[c.Table.Family] == "" {
		return false
	}
	_, ok := passedBy[*c.Hooknum]
	return ok
}

func isHooksTable(name string) bool {
	return name == "nodeproxy" || strings.HasPrefix(name, "nodeproxy-")
}

// legacyTables are, by family, where the kernel names the older tables that are in
// use, and what lists their rules.
var legacyTables = [2][2]string{
	{"/proc/thread-self/net/ip_tables_names", "iptables-legacy-save"},
	{"/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save"},
}

func (o *others) addLegacy(ctx context.Context) error {
	for f, family := range legacyTables {
		tables, err := os.ReadFile(family[0])
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(tables) == 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("legacy iptables tables: %w", err)
		}
		out, err := command.Run(ctx, toolLimit, nil, family[1])
		if errors.Is(err, exec.ErrNotFound) {
			// What cannot be read may be anything.
			o.chains = append(o.chains, "legacy tables "+strings.Join(strings.Fields(string(tables)), ", "))
			o.nat = true
			continue
		}
		if err != nil {
			return fmt.Errorf("legacy iptables tables: %w", err)
		}
		names, filter := readSave(familyNames[hookFamilies[f]], string(out))
		o.older[f] = filter
		o.chains = append(o.chains, names...)
		o.nat = o.nat || slices.ContainsFunc(names, func(name string) bool { return strings.HasSuffix(name, " nat POSTROUTING") })
	}
	return nil
}

// readSave reads what iptables-save printed: the names of the built-in chains with rules
// or a policy of DROP, and the table filter.
func readSave(family, saved string) (names []string, filter *filterTable) {
	filter = new(filterTable)
	table := ""
	seen := map[string]bool{}
	for line := range strings.Lines(saved) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if t, ok := strings.CutPrefix(fields[0], "*"); ok {
			table = t
			continue
		}
		if table == "filter" {
			filter.add(strings.TrimSpace(line))
		}
		var chain string
		if c, ok := strings.CutPrefix(fields[0], ":"); ok && len(fields) > 1 && fields[1] == "DROP" {
			chain = c
		} else if fields[0] == "-A" && len(fields) > 1 && fields[len(fields)-1] != acceptChain {
			chain = fields[1]
		}
		name := fmt.Sprintf("legacy %s %s %s", family, table, chain)
		if (chain == "PREROUTING" || chain == "FORWARD" || chain == "POSTROUTING") && !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names, filter
}
