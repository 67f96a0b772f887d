package admin

import (
	"fmt"
	"strings"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// ExplainWith tells what the Table makes of a packet, and whether the kernel's
// answer is the same.
func ExplainWith(table *service.Table, p service.Packet, a view.Answer) Explanation {
	e := Explain(table, p, nil)
	e.take(a, p)
	return e
}

// take adds the kernel's answer to an explanation, and says whether it is the
// same.
func (e *Explanation) take(a view.Answer, p service.Packet) {
	e.Kernel = &a
	e.Differs = e.difference(&a, p)
	e.Steps = append(e.Steps, "asked "+a.How+":")
	e.Steps = append(e.Steps, answerWords(&a, p)...)
	if e.Differs != "" {
		e.Steps = append(e.Steps, "MISMATCH: "+e.Differs+"; run nodeproxy verify")
	}
}

// difference is where the kernel's answer is not the Table's, or "".
func (e *Explanation) difference(a *view.Answer, p service.Packet) string {
	if a.Verdict != e.Verdict {
		return fmt.Sprintf("the kernel says %s, and the agent means %s", a.Verdict, e.Verdict)
	}
	wanted := map[string]Candidate{}
	for _, c := range e.Backends {
		wanted[c.Address] = c
	}
	for _, b := range a.Backends {
		c, ok := wanted[b.Address]
		switch {
		case !ok:
			return fmt.Sprintf("the kernel may select %s, which is no endpoint that the agent would choose", b.Address)
		case c.Masquerade != b.Masquerade && p.Interface != "": // what this node sends has its source anyway
			return fmt.Sprintf("masquerade towards %s is %v, and the agent says %v", b.Address, b.Masquerade, c.Masquerade)
		}
	}
	if seen := len(a.Backends); a.Complete && seen < len(wanted) && seen != 1 { // 1: a client with affinity
		return fmt.Sprintf("the kernel selects among %d endpoints, and the agent among %d", seen, len(wanted))
	}
	return ""
}

// answerWords tells the kernel's answer in the words of the explanation.
func answerWords(a *view.Answer, p service.Packet) []string {
	out := []string{"  " + map[string]string{"untouched": "the packet is not touched", "translate": "the packet is translated",
		"reject": "the packet is rejected", "drop": "the packet is dropped"}[a.Verdict]}
	if a.Reason != "" {
		out[0] += " (" + a.Reason + ")"
	}
	for _, b := range a.Backends {
		text := "    " + b.Address
		if p.Interface != "" {
			text += map[bool]string{true: ", sees this node as the source", false: ", sees the client's own address"}[b.Masquerade]
		}
		out = append(out, text)
	}
	if !a.Complete && len(a.Backends) > 0 {
		out = append(out, fmt.Sprintf("    (%d that came up in a few hundred tries)", len(a.Backends)))
	}
	if a.Note != "" {
		out = append(out, "  "+a.Note)
	}
	return out
}

// KernelOnly is an explanation by the kernel alone, where no agent answers.
func KernelOnly(a view.Answer, p service.Packet) Explanation {
	e := Explanation{Verdict: a.Verdict, Kernel: &a}
	e.Steps = append(e.Steps, fmt.Sprintf("%s packet from %s to %s", p.Protocol, from(p.Source), p.Destination), "asked "+a.How+":")
	e.Steps = append(e.Steps, strings.Join(answerWords(&a, p), "\n"))
	return e
}
