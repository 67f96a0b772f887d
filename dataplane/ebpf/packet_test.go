package ebpf

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/nodeproxy/nodeproxy/service"
)

// step is one packet of a case: what goes in where, and what must come out.
type step struct {
	dev     string // "eth0" is the way outside
	egress  bool
	in      frame
	raw     []byte // instead of in
	verdict int
	out     *frame // nil: unchanged, if it is not dropped
	reason  bpfReason
}

// packetCase runs its steps in order, beginning with no flows.
type packetCase struct {
	name     string
	services []svc
	steps    []step
}

// clientPort is in the masquerade range, so that it is kept and known.
const clientPort = 61234

var (
	famNames  = [2]string{"v4", "v6"}
	protoList = []service.Protocol{service.TCP, service.UDP}
)

func TestPackets(t *testing.T) {
	b := newBench(t, Options{})
	cases := slicesConcat(flowCases(), policyCases(), errorCases(), answerCases(), unknownPortCases(), oddCases(), fragmentCases())
	t.Logf("%d cases", len(cases))
	if len(cases) < 120 {
		t.Errorf("only %d cases", len(cases))
	}
	names := map[string]bool{}
	for _, c := range cases {
		if names[c.name] {
			t.Errorf("two cases are named %q", c.name)
		}
		names[c.name] = true
		t.Run(c.name, func(t *testing.T) { b.check(t, c) })
	}
}

func slicesConcat(lists ...[]packetCase) (out []packetCase) {
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

func (b *bench) check(t *testing.T, c packetCase) {
	b.forget(t)
	syncAll(t, b.d, b.n.table(c.services...))
	for i, s := range c.steps {
		data := s.raw
		if data == nil {
			data = s.in.bytes()
		}
		var prog *ebpf.Program = b.d.objs.Ingress
		if s.egress {
			prog = b.d.objs.Egress
		}
		before := b.d.metric(t, s.reason)
		verdict, got := b.run(t, prog, s.dev, data)
		if verdict != s.verdict {
			t.Errorf("step %d: verdict %d, want %d", i, verdict, s.verdict)
		}
		if s.reason != 0 && b.d.metric(t, s.reason) != before+1 {
			t.Errorf("step %d: not counted as %s", i, reasonNames[s.reason])
		}
		want := data
		if s.out != nil {
			want = s.out.bytes()
		}
		if s.verdict != verdictDrop && !bytes.Equal(got[12:], want[12:]) { // but for MAC addresses
			t.Errorf("step %d:\n got %x\nwant %x", i, got[12:], want[12:])
		}
	}
}

// to is the frame with other addresses and ports.
func (f frame) to(src string, sport uint16, dst string, dport uint16) frame {
	f.src, f.sport, f.dst, f.dport = src, sport, dst, dport
	return f
}

func (f frame) hop() *frame {
	if f.ttl == 0 {
		f.ttl = 64
	}
	f.ttl--
	return &f
}

// request and reply are both directions of a flow, before and after.
type flowPair struct {
	request, translated   frame
	reply, replyOut       frame
	clientDev, backendDev string
	services              []svc
}

// makePair describes a flow of a client ("outside" or "pod" b) to a frontend
// ("ClusterIP", "LB", "NodePort") whose backend is local (Pod a) or remote.
func makePair(f int, proto service.Protocol, client, frontend, backend string, policy service.Policy) flowPair {
	p := flowPair{clientDev: "eth0", backendDev: "poda"}
	src, dst, be := clientIP[f], vip[f], podA[f]
	port := uint16(80)
	masq := client == "outside" || frontend != "ClusterIP"
	if policy == service.PolicyLocal && frontend != "ClusterIP" {
		masq = false
	}
	if client == "pod" {
		src, p.clientDev = podB[f], "podb"
	}
	s := svc{name: "s", proto: proto, backends: to(podA, "8080"), local: to(podA, "8080"), policy: policy}
	if backend == "remote" {
		be, p.backendDev = podRemote[f], "eth0"
		s.backends, s.local = to(podRemote, "8080"), nil
	}
	switch frontend {
	case "LB":
		dst = lbIP[f]
	case "NodePort":
		dst, port = nodeIP[f], 30080
	}
	seen := src
	if masq {
		seen = nodeIP[f]
	}
	p.services = []svc{s}
	p.request = frame{proto: proto, flags: syn}.to(src, clientPort, dst, port)
	p.translated = p.request.to(seen, clientPort, be, 8080)
	p.reply = frame{proto: proto, flags: syn | ack}.to(be, 8080, seen, clientPort)
	p.replyOut = p.reply.to(dst, port, src, clientPort)
	return p
}

func (p flowPair) forward() step {
	return step{dev: p.clientDev, in: p.request, verdict: verdictRedirect, out: p.translated.hop(), reason: bpfReasonREASON_FLOW_NEW}
}

func (p flowPair) back() step {
	return step{dev: p.backendDev, in: p.reply, verdict: verdictRedirect, out: p.replyOut.hop()}
}

func eachCase(run func(f int, proto service.Protocol, name string)) {
	for f := range 2 {
		for _, p := range protoList {
			run(f, p, famNames[f]+" "+p.String())
		}
	}
}

func flowCases() (out []packetCase) {
	eachCase(func(f int, proto service.Protocol, name string) {
		for _, client := range []string{"outside", "pod"} {
			for _, frontend := range []string{"ClusterIP", "LB", "NodePort"} {
				for _, backend := range []string{"local", "remote"} {
					p := makePair(f, proto, client, frontend, backend, service.PolicyCluster)
					n := fmt.Sprintf("%s %s to %s, %s backend", name, client, frontend, backend)
					out = append(out,
						packetCase{n + ", forward", p.services, []step{p.forward()}},
						packetCase{n + ", reply", p.services, []step{p.forward(), p.back()}})
				}
			}
		}
	})
	return out
}

func policyCases() (out []packetCase) {
	eachCase(func(f int, proto service.Protocol, name string) {
		for _, frontend := range []string{"LB", "NodePort"} {
			p := makePair(f, proto, "outside", frontend, "local", service.PolicyLocal)
			out = append(out, packetCase{name + " policy Local, " + frontend + ", both ways, client's source kept",
				p.services, []step{p.forward(), p.back()}})
			p = makePair(f, proto, "outside", frontend, "remote", service.PolicyLocal)
			out = append(out, packetCase{name + " policy Local, " + frontend + ", endpoints elsewhere: dropped", p.services,
				[]step{{dev: "eth0", in: p.request, verdict: verdictDrop, reason: bpfReasonREASON_POLICY}}})
		}
		p := makePair(f, proto, "outside", "LB", "local", service.PolicyCluster)
		p.services[0].ranges = []string{"203.0.113.0/24", "fd00:bad::/32"}
		out = append(out, packetCase{name + " source outside ranges: dropped", p.services,
			[]step{{dev: "eth0", in: p.request, verdict: verdictDrop, reason: bpfReasonREASON_SOURCE_RANGE}}})
		q := makePair(f, proto, "outside", "LB", "local", service.PolicyCluster)
		q.services[0].ranges = []string{"192.168.0.0/16", "fd00:77::/64"}
		out = append(out, packetCase{name + " source inside ranges", q.services, []step{q.forward(), q.back()}})
		h := makePair(f, proto, "pod", "ClusterIP", "local", service.PolicyCluster)
		h.request = h.request.to(podA[f], clientPort, vip[f], 80)
		h.translated = h.request.to(nodeIP[f], clientPort, podA[f], 8080)
		h.reply = h.reply.to(podA[f], 8080, nodeIP[f], clientPort)
		h.replyOut = h.reply.to(vip[f], 80, podA[f], clientPort)
		h.clientDev = "poda"
		out = append(out, packetCase{name + " hairpin, both ways", h.services, []step{h.forward(), h.back()}})
	})
	return out
}

// icmpTypes are unreachable, too big and time exceeded, by family.
var icmpTypes = []struct {
	name string
	as   [2]icmpError
}{
	{"port unreachable", [2]icmpError{{typ: 3, code: 3}, {typ: 1, code: 4}}},
	{"too big", [2]icmpError{{typ: 3, code: 4, info: 1280}, {typ: 2, info: 1280}}},
	{"time exceeded", [2]icmpError{{typ: 11}, {typ: 3}}},
}

func (e icmpError) of(f frame, n int) *icmpError {
	e.quoted = f.quote(n)
	return &e
}

func errorCases() (out []packetCase) {
	eachCase(func(f int, proto service.Protocol, name string) {
		for _, kind := range icmpTypes {
			for _, masq := range []service.Policy{service.PolicyCluster, service.PolicyLocal} {
				p := makePair(f, proto, "outside", "NodePort", "local", masq)
				how := map[service.Policy]string{service.PolicyCluster: "masqueraded", service.PolicyLocal: "not masqueraded"}[masq]
				// UDP alone has its checksum within what is quoted; TCP's stays behind.
				router := "192.0.2.99"
				if f == 1 {
					router = "2001:db8::99"
				}
				e := kind.as[f]
				seen := p.translated.src
				out = append(out, packetCase{fmt.Sprintf("%s %s from the backend, %s", name, kind.name, how), p.services, []step{
					p.forward(), p.back(),
					{dev: "poda", in: frame{src: podA[f], dst: seen, icmp: e.of(p.translated, 8)}, verdict: verdictRedirect,
						out: frame{src: nodeIP[f], dst: clientIP[f], icmp: e.of(p.request, 8)}.hop(), reason: bpfReasonREASON_ICMP_TRANSLATED},
				}}, packetCase{fmt.Sprintf("%s %s from a router behind the client, %s", name, kind.name, how), p.services, []step{
					p.forward(), p.back(),
					{dev: "eth0", in: frame{src: router, dst: nodeIP[f], icmp: e.of(p.replyOut, 8)}, verdict: verdictRedirect,
						out: frame{src: router, dst: podA[f], icmp: e.of(p.reply, 8)}.hop(), reason: bpfReasonREASON_ICMP_TRANSLATED},
				}})
			}
		}
	})
	return out
}

// answerCases are those in which the programs make an answer themselves.
func answerCases() (out []packetCase) {
	for f := range 2 {
		name := famNames[f] + " "
		unreachable := icmpTypes[0].as[f]
		udp := frame{proto: service.UDP}.to(clientIP[f], clientPort, vip[f], 80)
		out = append(out, packetCase{name + "no endpoints, UDP", both(svc{name: "s"}), []step{{dev: "eth0", in: udp,
			verdict: verdictRedirect, out: &frame{src: vip[f], dst: clientIP[f], icmp: unreachable.of(udp, 8)}, reason: bpfReasonREASON_NO_ENDPOINTS}}})
		tcp := frame{flags: syn, seq: 1000, payload: []byte{}}.to(clientIP[f], clientPort, nodeIP[f], 30080)
		reset := frame{flags: rst | ack, ack: 1001, payload: []byte{}}.to(nodeIP[f], 30080, clientIP[f], clientPort)
		out = append(out, packetCase{name + "no endpoints, TCP", both(svc{name: "s"}), []step{{dev: "eth0", in: tcp,
			verdict: verdictRedirect, out: &reset, reason: bpfReasonREASON_NO_ENDPOINTS}}})
		withOptions := tcp
		withOptions.tcpOptions = make([]byte, 20)
		out = append(out, packetCase{name + "no endpoints, TCP with options", both(svc{name: "s"}), []step{{dev: "eth0", in: withOptions,
			verdict: verdictRedirect, out: &reset, reason: bpfReasonREASON_NO_ENDPOINTS}}})

		p := makePair(f, service.TCP, "outside", "NodePort", "local", service.PolicyCluster)
		middle := p.request
		middle.flags, middle.seq, middle.ack = ack|psh, 5000, 7777
		midReset := frame{flags: rst, seq: 7777, payload: []byte{}}.to(nodeIP[f], 30080, clientIP[f], clientPort)
		out = append(out, packetCase{name + "TCP without a flow is reset", p.services, []step{{dev: "eth0", in: middle,
			verdict: verdictRedirect, out: &midReset, reason: bpfReasonREASON_UNKNOWN_FLOW}}})
		lost := middle
		lost.flags = rst
		out = append(out, packetCase{name + "RST without a flow is not answered", p.services, []step{{dev: "eth0", in: lost,
			verdict: verdictDrop, reason: bpfReasonREASON_UNKNOWN_FLOW}}})

		for _, proto := range protoList {
			q := makePair(f, proto, "outside", "NodePort", "local", service.PolicyCluster)
			dying := q.request
			dying.ttl = 1
			n := map[service.Protocol]int{service.TCP: 20, service.UDP: 8}[proto]
			exceeded := icmpTypes[2].as[f]
			out = append(out, packetCase{name + proto.String() + " TTL 1 is answered with time exceeded", q.services, []step{{dev: "eth0", in: dying,
				verdict: verdictRedirect, out: &frame{src: nodeIP[f], dst: clientIP[f], icmp: exceeded.of(dying, n)}, reason: bpfReasonREASON_TTL}}})
			dying.ttl = 2
			out = append(out, packetCase{name + proto.String() + " TTL 2 goes on", q.services,
				[]step{{dev: "eth0", in: dying, verdict: verdictRedirect, out: frame{ttl: 2, proto: proto, flags: syn}.to(nodeIP[f], clientPort, podA[f], 8080).hop()}}})
			huge := q.request
			huge.payload = make([]byte, 1900)
			big := icmpTypes[1].as[f]
			big.info = 1500
			out = append(out, packetCase{name + proto.String() + " too big is answered", q.services, []step{{dev: "eth0", in: huge,
				verdict: verdictRedirect, out: &frame{src: nodeIP[f], dst: clientIP[f], icmp: big.of(huge, n)}, reason: bpfReasonREASON_TOO_BIG}}})
		}
	}
	return out
}

// oddCases are packets that are malformed, unusual, or none of a service's.
func oddCases() (out []packetCase) {
	for f := range 2 {
		name := famNames[f] + " "
		p := makePair(f, service.TCP, "outside", "NodePort", "local", service.PolicyCluster)
		u := makePair(f, service.UDP, "outside", "NodePort", "local", service.PolicyCluster)
		pass := func(what string, s step) {
			s.dev, s.verdict = "eth0", verdictNext
			out = append(out, packetCase{name + what + " passes", p.services, []step{s}})
		}
		pass("another port", step{in: p.request.to(clientIP[f], clientPort, nodeIP[f], 22)})
		pass("another address", step{in: p.request.to(clientIP[f], clientPort, podA[f], 80)})
		pass("another protocol on the port", step{in: u.request})
		pass("echo request to the node", step{in: frame{src: clientIP[f], dst: nodeIP[f], icmp: &icmpError{typ: [2]byte{8, 128}[f]}}})
		out = append(out, packetCase{name + "echo reply to a VIP is dropped", p.services, []step{{dev: "eth0", verdict: verdictDrop, reason: bpfReasonREASON_UNKNOWN_PROTOCOL,
			in: frame{src: clientIP[f], dst: vip[f], icmp: &icmpError{typ: [2]byte{0, 129}[f]}}}}})
		pass("error about no flow", step{in: frame{src: clientIP[f], dst: nodeIP[f], icmp: icmpTypes[0].as[f].of(p.request, 8)}})
		pass("truncated error", step{raw: frame{src: clientIP[f], dst: nodeIP[f], icmp: &icmpError{typ: [2]byte{3, 1}[f], quoted: make([]byte, 9)}}.bytes()})
		short := p.request.bytes()
		ipLen := [2]int{20, 40}[f]
		pass("truncated TCP header", step{raw: short[:14+ipLen+12]})
		wrongVersion := p.request.bytes()
		wrongVersion[14] = 0x95
		pass("wrong IP version", step{raw: wrongVersion})
		longer := p.request.bytes()
		longer[14+[2]int{2, 4}[f]] = 0x7f
		pass("length beyond the packet", step{raw: longer})
		ext := p.request
		ext.options = make([]byte, 8)
		if f == 0 {
			for i := range ext.options {
				ext.options[i] = 1 // no operation
			}
		}
		extOut := ext.to(nodeIP[f], clientPort, podA[f], 8080)
		out = append(out, packetCase{name + "IP options or extension header", p.services,
			[]step{{dev: "eth0", in: ext, verdict: verdictRedirect, out: extOut.hop()}, p.back()}})
		tcpOpt := p.request
		tcpOpt.tcpOptions = make([]byte, 40)
		out = append(out, packetCase{name + "TCP options", p.services,
			[]step{{dev: "eth0", in: tcpOpt, verdict: verdictRedirect, out: tcpOpt.to(nodeIP[f], clientPort, podA[f], 8080).hop()}}})
		for _, pair := range []flowPair{p, u} {
			wrong := pair.request
			wrong.wrongCheck = 0x1111
			out = append(out, packetCase{name + pair.request.proto.String() + " wrong checksum stays as wrong", pair.services,
				[]step{{dev: "eth0", in: wrong, verdict: verdictRedirect, out: wrong.to(nodeIP[f], clientPort, podA[f], 8080).hop()}}})
		}
		if f == 0 {
			zero := u.request
			zero.zeroCheck = true
			out = append(out, packetCase{name + "UDP without checksum stays without", u.services,
				[]step{{dev: "eth0", in: zero, verdict: verdictRedirect, out: zero.to(nodeIP[f], clientPort, podA[f], 8080).hop()}}})
		}
		again := p.request
		again.flags = syn
		data := p.request
		data.flags = ack | psh
		out = append(out, packetCase{name + "retransmitted SYN and data keep their flow", p.services,
			[]step{p.forward(), {dev: "eth0", in: again, verdict: verdictRedirect, out: p.translated.hop()},
				{dev: "eth0", in: data, verdict: verdictRedirect, out: data.to(nodeIP[f], clientPort, podA[f], 8080).hop()}}})
		closing := p.request
		closing.flags = rst
		out = append(out, packetCase{name + "SYN after a reset begins anew", p.services,
			[]step{p.forward(), {dev: "eth0", in: closing, verdict: verdictRedirect, out: closing.to(nodeIP[f], clientPort, podA[f], 8080).hop()},
				p.forward(), p.back()}})
		stray := frame{flags: ack}.to(podA[f], 8080, nodeIP[f], clientPort)
		out = append(out, packetCase{name + "reply to a masquerade port without a flow is dropped", p.services,
			[]step{{dev: "poda", in: stray, verdict: verdictDrop, reason: bpfReasonREASON_UNKNOWN_REPLY}}})
		sctp := makePair(f, service.SCTP, "outside", "LB", "local", service.PolicyCluster)
		sctp.services[0].proto = service.SCTP
		out = append(out, packetCase{name + "SCTP to another port is dropped", sctp.services,
			[]step{{dev: "eth0", in: sctp.request, verdict: verdictDrop, reason: bpfReasonREASON_SCTP_PORT}}})
		same := makePair(f, service.SCTP, "outside", "LB", "local", service.PolicyCluster)
		same.services[0].port = 8080
		same.request.dport, same.replyOut.sport = 8080, 8080
		out = append(out, packetCase{name + "SCTP to the same port, both ways", same.services, []step{same.forward(), same.back()}})
		host := makePair(f, service.TCP, "outside", "LB", "local", service.PolicyCluster)
		host.services[0].backends = to(nodeIP, "9090")
		host.services[0].local = nil
		req, rep := host.request, host.reply
		reqOut, repIn := req.to(clientIP[f], clientPort, nodeIP[f], 9090), rep.to(nodeIP[f], 9090, clientIP[f], clientPort)
		repOut := rep.to(lbIP[f], 80, clientIP[f], clientPort)
		out = append(out, packetCase{name + "backend on the host: to the stack, and its reply at egress", host.services,
			[]step{{dev: "eth0", in: req, verdict: verdictNext, out: &reqOut, reason: bpfReasonREASON_STACK},
				{dev: "eth0", egress: true, in: repIn, verdict: verdictNext, out: &repOut}}})
	}
	arp := make([]byte, 60)
	arp[12], arp[13] = 8, 6
	out = append(out, packetCase{"ARP passes", nil, []step{{dev: "eth0", raw: arp, verdict: verdictNext}}})
	return out
}

// fragmentCases cut one datagram into two pieces.
func fragmentCases() (out []packetCase) {
	for f := range 2 {
		for _, masq := range []service.Policy{service.PolicyCluster, service.PolicyLocal} {
			p := makePair(f, service.UDP, "outside", "LB", "local", masq)
			how := map[service.Policy]string{service.PolicyCluster: "masqueraded", service.PolicyLocal: "not masqueraded"}[masq]
			whole := p.request
			whole.payload = make([]byte, 64)
			wholeOut := p.translated
			wholeOut.payload = whole.payload
			_, inBytes := whole.transport()
			_, outBytes := wholeOut.transport()
			first, later := whole, whole
			first.whole, first.more, first.id, first.noDF = inBytes[:40], true, 77, true
			later.whole, later.fragment, later.id, later.noDF = inBytes[40:], 40, 77, true
			firstOut, laterOut := first, later
			firstOut.src, laterOut.src = wholeOut.src, wholeOut.src
			firstOut.dst, laterOut.dst = wholeOut.dst, wholeOut.dst
			firstOut.whole = outBytes[:40]
			a := step{dev: "eth0", in: first, verdict: verdictRedirect, out: firstOut.hop()}
			b := step{dev: "eth0", in: later, verdict: verdictRedirect, out: laterOut.hop()}
			orphan := later
			orphan.id = 78 + uint32(masq) + 10*uint32(f)
			out = append(out,
				packetCase{famNames[f] + " fragments in order, " + how, p.services, []step{a, b}},
				packetCase{famNames[f] + " later fragment again, " + how, p.services, []step{a, b, b}},
				packetCase{famNames[f] + " later fragment without the first is dropped, " + how, p.services,
					[]step{{dev: "eth0", in: orphan, verdict: verdictDrop, reason: bpfReasonREASON_FRAGMENT_ORPHAN}}})
		}
	}
	return out
}
