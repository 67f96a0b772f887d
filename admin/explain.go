package admin

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/nodeproxy/nodeproxy/dataplane/view"
	"github.com/nodeproxy/nodeproxy/service"
)

// Explanation is what this node would do with a packet, and why.
type Explanation struct {
	// Steps tell it one after the other, in the same words in every mode.
	Steps []string `json:"steps"`
	// Verdict is untouched, translate, reject or drop.
	Verdict  string      `json:"verdict"`
	Service  string      `json:"service,omitempty"`
	Backends []Candidate `json:"backends,omitempty"`
	// Kernel is what the kernel's own rules or programs say, if they were asked,
	// and Differs how that is not what the agent says.
	Kernel  *view.Answer `json:"kernel,omitempty"`
	Differs string       `json:"differs,omitempty"`
	// Socket is what happens to a socket's call, where programs at sockets translate.
	Socket *SocketAnswer `json:"socket,omitempty"`
}

// Candidate is a backend that a packet may go to.
type Candidate struct {
	Address    string `json:"address"`
	Local      bool   `json:"local"`
	Weight     int    `json:"weight"`
	Masquerade bool   `json:"masquerade"`
	NextHop    string `json:"nextHop,omitempty"`
}

// A Hop says by which way this node reaches an address: "on veth0", "via
// 192.0.2.1 on eth0".
type Hop func(netip.Addr) string

// Explain tells what the Table makes of a packet; which of the candidates is
// taken is for the kernel to choose. Without a Hop, nothing is said of ways. What
// is sent to loopback is for [ExplainLoopback].
func Explain(table *service.Table, p service.Packet, hop Hop) Explanation {
	return explain(table.Judge(p), p, hop)
}

func explain(o service.Outcome, p service.Packet, hop Hop) Explanation {
	e := Explanation{}
	say := e.say
	say("%s packet from %s to %s", p.Protocol, from(p.Source), p.Destination)
	if !o.Matched {
		e.Verdict = "untouched"
		say("no Service has this destination: the packet is not touched")
		return e
	}
	say("the source is %s", sourceWords[o.Source])
	e.Verdict = o.Route.Action.String()
	if o.Frontend == nil {
		say("the address is a Service's, but none of its ports is this one: rejected, at once")
		return e
	}
	e.Service = o.Port.Name.String()
	say("%s of Service %s", frontendWords(o.Frontend, p.Destination), e.Service)
	switch {
	case o.Blocked:
		say("the source is outside of loadBalancerSourceRanges %s: dropped", prefixes(o.Frontend.SourceRanges))
		return e
	case o.Frontend.Filtered:
		say("the source is inside of loadBalancerSourceRanges %s", prefixes(o.Frontend.SourceRanges))
	}
	switch o.Route.Action {
	case service.Reject:
		say("the Service has no usable endpoint%s: rejected, at once", because(o.Port))
	case service.Drop:
		say("the traffic policy is Local and no endpoint is on this node%s: dropped, so that load balancers go elsewhere", elsewhere(o.Port))
	case service.Translate:
		e.translated(o, p, hop)
	}
	return e
}

// because tells why a port has no endpoint.
func because(sp *service.ServicePort) string {
	if sp.NoEndpoint == "" {
		return ""
	}
	return " (" + sp.NoEndpoint + ")"
}

// elsewhere tells how many endpoints other nodes have.
func elsewhere(sp *service.ServicePort) string {
	if n := len(sp.Serving) - len(sp.ServingLocal); n > 0 {
		return fmt.Sprintf(" (%d are on others)", n)
	}
	return ""
}

var sourceWords = map[service.Source]string{
	service.FromPod: "a Pod", service.FromNode: "this node itself", service.FromOutside: "outside of the cluster",
}

func (e *Explanation) say(format string, args ...any) {
	e.Steps = append(e.Steps, fmt.Sprintf(format, args...))
}

func (e *Explanation) translated(o service.Outcome, p service.Packet, hop Hop) {
	e.choice(o)
	for _, b := range o.Backends {
		e.candidate(b, p, o.Masquerade(p, b), hop)
	}
}

// choice tells what a backend is chosen from.
func (e *Explanation) choice(o service.Outcome) {
	where := "on every node"
	if o.Route.List == service.ListLocal {
		where = "on this node"
	}
	if len(o.Backends) == 1 {
		e.say("picks the only endpoint %s", where)
	} else {
		e.say("picks one of %d endpoints %s", len(o.Backends), where)
	}
	if t := o.Port.AffinityTimeout; t > 0 {
		e.say("session affinity: a client that came within %s goes to the endpoint that it had", t)
	}
}

// candidate adds a backend that the packet may go to.
func (e *Explanation) candidate(b service.Backend, p service.Packet, masquerade bool, hop Hop) {
	c := Candidate{Address: b.To(p.Destination.Port()).String(), Local: b.Local, Weight: b.Shares(), Masquerade: masquerade}
	text := c.Address
	if c.Weight > 1 {
		text += fmt.Sprintf(", weight %d", c.Weight)
	}
	if c.Local {
		text += ", on this node"
	}
	if c.Masquerade {
		text += ", sees this node as the source"
	} else {
		text += ", sees the client's own address"
	}
	if hop != nil {
		c.NextHop = hop(b.Addr())
		text += ", next hop " + c.NextHop
	}
	e.Backends = append(e.Backends, c)
	e.say("  %s", text)
}

func from(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}

func frontendWords(f *service.Frontend, to netip.AddrPort) string {
	if f.Kind == service.NodePort {
		return fmt.Sprintf("node port %d", f.Port)
	}
	return fmt.Sprintf("%s %s", f.Kind, to)
}

func prefixes(list []netip.Prefix) string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return "[" + strings.Join(out, " ") + "]"
}
