package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"

	"github.com/nodeproxy/nodeproxy/dataplane/command"
	"github.com/nodeproxy/nodeproxy/dataplane/netevents"
)

// On the stack way, Service flows pass the FORWARD chain of every program that has one. Where
// that drops by default, kube-proxy accepts what it has masqueraded, and what
// conntrack knows (KUBE-FORWARD); so do we, in a chain of ours. It is there only
// where there is a FORWARD chain of iptables: nothing in nf_tables can overrule
// another table's drop.

// acceptChain is not called as the chains of iptables mode are, which take all of
// their prefix for theirs.
const acceptChain = "NODEPROXYEBPF-FORWARD"

// acceptJump leads there.
const acceptJump = "-j " + acceptChain

// acceptRules are what of Service flows is accepted: answers; flows whose client is
// hidden, since no rule could tell them; and what the host itself sends, which
// comes in by lo for its first packet (send_again of bpf/ct_new.h). They are written
// as every iptables prints them.
var acceptRules = []string{
	"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
	"-m conntrack --ctstate DNAT -m conntrack --ctstate SNAT -j ACCEPT",
	"-i lo -m conntrack --ctstate DNAT -j ACCEPT",
}

// toolLimit is how long one command may take, half of it for the lock of its rules.
const toolLimit = 10 * time.Second

// tool is one iptables command.
type tool struct {
	name   string
	family int // index of hookFamilies
	legacy bool
}

var toolNames = [2]map[bool]string{ // by family, and whether legacy
	{false: "iptables-nft", true: "iptables-legacy"},
	{false: "ip6tables-nft", true: "ip6tables-legacy"},
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
		f := slices.Index(hookFamilies[:], c.Table.Family)
		if f >= 0 && c.Table.Name == "filter" && c.Name == "FORWARD" {
			out = append(out, tool{toolNames[f][false], f, false})
		}
	}
	for f, where := range legacyTables {
		names, err := os.ReadFile(where[0])
		if err == nil && strings.Contains("\n"+string(names), "\nfilter\n") {
			out = append(out, tool{toolNames[f][true], f, true})
		}
	}
	return out, nil
}

// filterTable is the table filter of one family.
type filterTable struct {
	chains []string            // without the built-in ones
	rules  map[string][]string // by chain
}

// add takes in a line that iptables -S or iptables-save prints of the table.
func (f *filterTable) add(line string) {
	kind, rest, _ := strings.Cut(line, " ")
	switch {
	case kind == "-N":
		f.chains = append(f.chains, rest)
	case strings.HasPrefix(kind, ":") && strings.HasPrefix(rest, "- "):
		f.chains = append(f.chains, kind[1:])
	case kind == "-A":
		chain, rule, _ := strings.Cut(rest, " ")
		if f.rules == nil {
			f.rules = map[string][]string{}
		}
		f.rules[chain] = append(f.rules[chain], rule)
	}
}

func (f *filterTable) accepts() bool {
	return slices.Equal(f.rules[acceptChain], acceptRules) && slices.Contains(f.rules["FORWARD"], acceptJump)
}

// behindJudges is the place in FORWARD behind the jumps to chains of others with which
// it begins: policy engines judge there, and what they forbid we must not accept.
func (f *filterTable) behindJudges() int {
	place := 1
	for _, rule := range f.rules["FORWARD"] {
		fields := strings.Fields(rule)
		at := slices.Index(fields, "-j")
		if at < 0 || at+1 == len(fields) || !slices.Contains(f.chains, fields[at+1]) {
			break
		}
		place++
	}
	return place
}

// read lists the table.
func (t tool) read(ctx context.Context) (*filterTable, error) {
	out, err := command.Run(ctx, toolLimit, nil, t.name, "-w", "5", "-t", "filter", "-S")
	if err != nil {
		return nil, err
	}
	f := new(filterTable)
	for line := range strings.Lines(string(out)) {
		f.add(strings.TrimSpace(line))
	}
	return f, nil
}

// write changes the table, in one step.
func (t tool) write(ctx context.Context, lines ...string) error {
	_, err := command.Run(ctx, toolLimit, []byte("*filter\n"+strings.Join(lines, "\n")+"\nCOMMIT\n"), t.name+"-restore", "-w", "5", "--noflush")
	return err
}

// acceptance keeps our chain where there is a FORWARD chain of iptables.
type acceptance struct {
	// complete tells that nothing was missing in nf_tables when its rules were of
	// this generation.
	complete   bool
	generation uint32
}

// ensure adds what is missing. older are the older tables filter, by family, where
// they have just been read.
func (a *acceptance) ensure(ctx context.Context, older [2]*filterTable) error {
	generation, known := netevents.RulesGeneration()
	wanted, err := forwardTools()
	if err != nil {
		return err
	}
	complete := known
	var errs []error
	for _, t := range wanted {
		switch {
		case t.legacy:
			_, err = t.accept(ctx, older[t.family])
		case known && a.complete && a.generation == generation:
			continue
		default:
			var added bool
			added, err = t.accept(ctx, nil)
			complete = complete && !added && err == nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("accept Service flows in FORWARD: %w", err))
		}
	}
	a.complete, a.generation = complete, generation
	return errors.Join(errs...)
}

// accept adds what is missing to the table, which is read if it is nil. A command that
// the machine does not have is no error.
func (t tool) accept(ctx context.Context, is *filterTable) (added bool, err error) {
	if is == nil {
		is, err = t.read(ctx)
		if errors.Is(err, exec.ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	if is.accepts() {
		return false, nil
	}
	lines := []string{":" + acceptChain + " - [0:0]"} // makes it, or empties it
	for _, rule := range acceptRules {
		lines = append(lines, "-A "+acceptChain+" "+rule)
	}
	if !slices.Contains(is.rules["FORWARD"], acceptJump) {
		lines = append(lines, fmt.Sprintf("-I FORWARD %d %s", is.behindJudges(), acceptJump))
	}
	return true, t.write(ctx, lines...)
}

// removeAccepted takes our chain away again, wherever it is.
func removeAccepted(ctx context.Context) error {
	there, err := forwardTools()
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range there {
		if err := t.remove(ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove chain %s: %w", acceptChain, err))
		}
	}
	return errors.Join(errs...)
}

func (t tool) remove(ctx context.Context) error {
	is, err := t.read(ctx)
	if errors.Is(err, exec.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var lines []string
	for _, rule := range is.rules["FORWARD"] {
		if rule == acceptJump {
			lines = append(lines, "-D FORWARD "+acceptJump)
		}
	}
	if slices.Contains(is.chains, acceptChain) {
		lines = append(lines, "-F "+acceptChain, "-X "+acceptChain)
	}
	if len(lines) == 0 {
		return nil
	}
	return t.write(ctx, lines...)
}
