package iptables

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/nodeproxy/nodeproxy/dataplane/iptables/walk"
	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// Explain leads the first packet of a flow through the rules that the kernel
// has, and tells all that can become of it. Rules of others are not followed.
func (r *Reader) Explain(ctx context.Context, p service.Packet) (view.Answer, error) {
	answer := view.Answer{How: "the rules in the kernel, as iptables-save prints them", Complete: true}
	for _, k := range r.kernels {
		if k.family != service.FamilyOf(p.Destination.Addr()) {
			continue
		}
		s, err := k.readSaved(ctx)
		if err != nil {
			return answer, err
		}
		j, err := r.judge(s)
		if err != nil {
			return answer, err
		}
		outcomes, err := j.rules.Walk(walk.Packet{Source: p.Source, Destination: p.Destination, Protocol: uint8(p.Protocol), Interface: p.Interface, Leaves: p.Leaves},
			walk.Node{Local: j.node.IsLocal, Remembered: func(list string) bool { return remembers(list, p) }})
		if err != nil {
			return answer, err
		}
		fill(&answer, outcomes)
		if s.foreign {
			answer.Note = "rules of other programs stand beside ours; they were not followed"
		}
	}
	return answer, nil
}

// remembers tells whether a list of xt_recent has the source of a packet.
func remembers(list string, p service.Packet) bool {
	text, err := os.ReadFile(filepath.Join(recentDir, list))
	return err == nil && strings.Contains("\n"+string(text), "\nsrc="+p.Source.Addr().String()+" ")
}

// fill takes in where a walk may end.
func fill(answer *view.Answer, outcomes []walk.Outcome) {
	for _, o := range outcomes {
		switch {
		case o.Verdict == "REJECT":
			answer.Verdict = service.Reject.String()
		case o.Verdict == "DROP":
			answer.Verdict = service.Drop.String()
		case !o.Translated:
			answer.Verdict = "untouched"
		default:
			answer.Verdict = service.Translate.String()
			answer.Backends = append(answer.Backends, view.AnswerBackend{Address: o.Destination.String(), Masquerade: o.Masquerade})
		}
	}
}
