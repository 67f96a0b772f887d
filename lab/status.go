package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"
)

// AgentStatus is what is known of one node's agent.
type AgentStatus struct {
	Node    string
	Mode    string // empty if there is no agent
	PID     int
	Running bool // else it ended without being stopped
}

// String returns "agent: iptables, PID 4711" or the like.
func (s AgentStatus) String() string {
	switch {
	case s.Mode == "":
		return "agent: none"
	case !s.Running:
		return fmt.Sprintf("agent: %s, has DIED", s.Mode)
	}
	return fmt.Sprintf("agent: %s, PID %d", s.Mode, s.PID)
}

// Agents returns the status of every node's agent.
func (l *Lab) Agents() []AgentStatus {
	var list []AgentStatus
	for _, node := range PlacesOf(Node) {
		s := AgentStatus{Node: node.Name}
		if p, mode, err := l.Agent(node.Name); err == nil {
			s.Mode, s.PID, s.Running = mode, p.PID, p.Running()
		}
		list = append(list, s)
	}
	return list
}

// Status draws the lab as text: places, addresses, agents, and where to find
// the rest.
func (l *Lab) Status() string {
	return draw(l.opts.Bridge, l.Agents()) + fmt.Sprintf(`
manifests   %s
logs        %s
namespaces  %s ... (ip netns)
`, l.ManifestDir(), l.LogPath("*"), l.Netns("client"))
}

// boxWidth is the width of a node's box, borders included: room for an IPv6
// Pod address beside its name and IPv4 one.
const boxWidth = 44

// draw renders the topology: client and router in the middle, nodes below.
func draw(bridge bool, agents []AgentStatus) string {
	client, router := MustPlace("client"), MustPlace("router")
	lines := slices.Concat(
		centre(box("client", 36, '─', '┬', pair(client.Addrs()))),
		centre(box("router", 36, '┴', '┬', pair(RouterClientSide), pair(router.Addrs()))),
	)
	// From the middle above to the middles of the two boxes below.
	branch := strings.Repeat("─", boxWidth/2)
	lines = append(lines, pad(boxWidth/2-1)+"┌"+branch+"┴"+branch+"┐")

	nodes := PlacesOf(Node)
	var columns [][]string
	for _, node := range nodes {
		columns = append(columns, box(node.Name, boxWidth, '┴', '─', nodeLines(node, bridge, agents)...))
	}
	for i := range columns[0] {
		lines = append(lines, columns[0][i]+"  "+columns[1][i])
	}
	return strings.Join(lines, "\n") + "\n"
}

func nodeLines(node Place, bridge bool, agents []AgentStatus) []string {
	lines := []string{pair(node.Addrs())}
	for _, a := range agents {
		if a.Node == node.Name {
			lines = append(lines, a.String())
		}
	}
	how := "routed veths"
	if bridge {
		how = "bridge cni0"
	}
	lines = append(lines, "", "Pods, "+how+":")
	for _, pod := range PlacesOf(Pod) {
		if pod.Node == node.Name {
			lines = append(lines, fmt.Sprintf("%s  %-13s%s", pod.Name, pod.IPv4, pod.IPv6))
		}
	}
	return lines
}

func pair(addrs []netip.Addr) string { return fmt.Sprintf("%-15s %s", addrs[0], addrs[1]) }

// box frames lines under a title. up and down are what stands in the middle
// of the upper and lower border: '─', or a joint where a line meets it.
func box(title string, width int, up, down rune, lines ...string) []string {
	inner := width - 2
	out := []string{"┌" + border(inner, up, " "+title+" ") + "┐"}
	for _, line := range lines {
		out = append(out, "│ "+line+pad(inner-1-utf8.RuneCountInString(line))+"│")
	}
	return append(out, "└"+border(inner, down, "")+"┘")
}

// border is a line of the width with the title near its left end and the
// joint in the middle.
func border(width int, joint rune, title string) string {
	runes := []rune(strings.Repeat("─", width))
	runes[width/2-1+width%2] = joint
	copy(runes[1:], []rune(title))
	return string(runes)
}

// centre moves a box to the middle above the two nodes.
func centre(box []string) []string {
	total := 2*boxWidth + 2
	out := make([]string, len(box))
	for i, line := range box {
		out[i] = pad((total-utf8.RuneCountInString(line))/2) + line
	}
	return out
}

func pad(n int) string { return strings.Repeat(" ", max(0, n)) }
