package bench

import (
	"slices"
	"strings"
)

// workTexts say what each work measures, and in what unit.
var workTexts = map[string]string{
	WorkConnect: "new TCP connections a second, one after the other", WorkConnect8: "new TCP connections a second, from 8 threads",
	WorkOpen: "new TCP connections at a fixed rate", WorkClose: "the same, closed by the backend first",
	WorkRequest: "requests a second over one open TCP connection", WorkDatagram: "UDP questions answered a second, each from a new socket",
	WorkTCP1: "bits a second over one TCP stream (iperf3)", WorkTCP8: "bits a second over 8 TCP streams (iperf3)", WorkIPerf2: "bits a second over one TCP stream (iperf 2)",
	WorkStart: "seconds from the start of the agent to the first traffic", WorkChange: "from the writing of a change to the first packet that follows it",
	WorkChurn: "100 changes a second while connections are made", WorkRestart: "the agent is killed and started while connections are made",
}

// columnTexts say what each column is.
var columnTexts = map[string]string{
	Bare: "no agent: clients dial a Pod's own address, on a way with as many hops", IPTablesNFT: "nodeproxy, iptables mode, on nf_tables",
	IPTablesLegacy: "nodeproxy, iptables mode, on the older tables", EBPF: "nodeproxy, ebpf mode", EBPFPackets: "nodeproxy, ebpf mode, without the programs at sockets",
	EBPFStack:  "nodeproxy, ebpf mode, without the programs at sockets, every packet through the kernel's own stack",
	EBPFBefore: "ebpf of the program that --before names", EBPFPacketsBefore: "ebpf-packets of the program that --before names",
	KubeProxyIPTables: "kube-proxy, mode iptables", KubeProxyNFTables: "kube-proxy, mode nftables",
}

// pathTexts say how a Service is reached.
var pathTexts = map[string]string{
	PathCluster: "a Pod dials the ClusterIP; the endpoint is on another node", PathNodePortLocal: "a client outside dials a node port of the endpoint's node",
	PathNodePortRemote: "a client outside dials a node port of another node", PathExternal: "a client outside dials an externalIP",
}

// workWords says what a work measures.
func workWords(work string) string {
	if rate, ok := strings.CutPrefix(work, WorkUDP); ok {
		return "UDP datagrams lost at " + rate + "bit/s (iperf3)"
	}
	return workTexts[work]
}

// legendOf explains the columns, the works and the ways of keys: name and words.
func legendOf(keys []Key) (out [][2]string) {
	for _, c := range columnsOf(keys) {
		out = append(out, [2]string{c, columnTexts[c]})
	}
	for _, w := range worksOf(keys) {
		out = append(out, [2]string{w, workWords(w)})
	}
	for _, p := range pathNames {
		if slices.ContainsFunc(keys, func(k Key) bool { return k.Path == p }) {
			out = append(out, [2]string{p, pathTexts[p]})
		}
	}
	return out
}
