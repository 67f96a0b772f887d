package repo

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// prose are the files in which people are told something: documentation, and code with
// its comments, without what is generated. A change log tells of what once was.
func prose(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for name, data := range files(t) {
		switch ext := path.Ext(name); {
		case name == "CHANGELOG.md", strings.HasSuffix(name, "_bpfel.go"), strings.HasPrefix(name, "internal/repo/"):
		case slices.Contains([]string{".md", ".go", ".h", ".c"}, ext):
			out[name] = string(data)
		}
	}
	return out
}

// joined is a text without the marks of comments between its lines.
func joined(text string) string {
	return regexp.MustCompile(`\n\s*(//|\*|#)?\s*`).ReplaceAllString(text, " ")
}

// Rows of docs/pitfalls.md that code and tests cite are there, each names tests that
// there are or says that there is none, and a test that bears a row's number is in it.
func TestPitfallsAreThoseThatAreCited(t *testing.T) {
	texts := prose(t)
	exists := testNames(t)
	rows := map[int]string{}
	for line := range strings.Lines(texts["docs/pitfalls.md"]) {
		if m := regexp.MustCompile(`^\| P(\d+) \|`).FindStringSubmatch(line); m != nil {
			n, err := strconv.Atoi(m[1])
			if err != nil || n != len(rows)+1 {
				t.Errorf("row %s comes after %d", m[1], len(rows))
			}
			rows[n] = line
		}
	}
	if len(rows) != 58 {
		t.Errorf("%d rows", len(rows))
	}
	for n, row := range rows {
		named := testName.FindAllString(row, -1)
		if len(named) == 0 && !strings.Contains(row, "| no test") {
			t.Errorf("P%d names no test", n)
		}
		for _, name := range named {
			if !exists[name] {
				t.Errorf("P%d names %s, which does not exist", n, name)
			}
		}
	}
	for name := range exists {
		for _, m := range regexp.MustCompile(`P(\d+)`).FindAllStringSubmatch(name, -1) {
			if n, _ := strconv.Atoi(m[1]); strings.HasPrefix(name, "TestP"+m[1]) && !strings.Contains(rows[n], name) {
				t.Errorf("%s is not in row P%d", name, n)
			}
		}
	}
	cited := 0
	for name, text := range texts {
		for _, m := range regexp.MustCompile(`(?:^|[\s(])P(\d{1,2})\b`).FindAllStringSubmatch(text, -1) {
			if n, _ := strconv.Atoi(m[1]); rows[n] == "" {
				t.Errorf("%s cites P%s", name, m[1])
			}
			cited++
		}
	}
	if cited < 80 { // the rows themselves are 58
		t.Errorf("only %d citations were found", cited)
	}
}

// Pages of documentation and their headings that anything cites are there.
func TestCitedPagesAndHeadingsExist(t *testing.T) {
	texts := prose(t)
	page := regexp.MustCompile(`\bdocs/[\w/-]+\.md\b`)
	heading := regexp.MustCompile(`(docs/[\w/-]+\.md), "([^"]+)"`)
	link := regexp.MustCompile(`\]\(([\w./-]+\.md)(?:#[\w-]*)?\)`)
	headings := 0
	for name, text := range texts {
		for _, cited := range page.FindAllString(text, -1) {
			if _, ok := texts[cited]; !ok {
				t.Errorf("%s cites %s", name, cited)
			}
		}
		for _, m := range heading.FindAllStringSubmatch(joined(text), -1) {
			headings++
			if !regexp.MustCompile(`(?m)^#+ ` + regexp.QuoteMeta(m[2]) + `$`).MatchString(texts[m[1]]) {
				t.Errorf("%s cites %q of %s", name, m[2], m[1])
			}
		}
		if path.Ext(name) == ".md" {
			for _, m := range link.FindAllStringSubmatch(text, -1) {
				if _, ok := texts[path.Join(path.Dir(name), m[1])]; !ok && m[1] != "CHANGELOG.md" {
					t.Errorf("%s links to %s", name, m[1])
				}
			}
		}
		for _, stale := range []string{"kube-proxy-semantics", "of the reference, section", "field-reports"} {
			if strings.Contains(text, stale) {
				t.Errorf("%s cites %s, which is not in the repository", name, stale)
			}
		}
	}
	if headings < 8 {
		t.Errorf("only %d citations of headings were found", headings)
	}
}

// foreign are names of the kernel's, and of others', that documentation has.
var foreign = []string{"bpf_fib_lookup", "bpf_redirect_neigh", "early_drop", "ip_family", "nf_conntrack_alloc", "nft_chain_validate", "route_localnet", "rp_filter", "xt_bpf",
	"nf_conntrack_tcp.h", "nf_conntrack_common.h", "if_packet.h", "pkt_cls.h", "membarrier.h", "nfnetlink_conntrack.h", "nfnetlink_log.h", "sctp.h"}

// Maps, reasons, functions and headers of bpf/ that prose names are there, and
// dataplane/ebpf/doc.go has every map, bpf/drop.h every reason with its meaning.
func TestNamesOfTheProgramsExist(t *testing.T) {
	texts := prose(t)
	known := map[string]bool{}
	var programs strings.Builder
	for name, text := range texts {
		if strings.HasPrefix(name, "bpf/") {
			known[path.Base(name)] = true
			programs.WriteString(text)
		}
	}
	for _, word := range foreign {
		known[word] = true
	}
	identifiers := map[string]bool{}
	for _, word := range regexp.MustCompile(`[A-Za-z_]\w+`).FindAllString(programs.String(), -1) {
		identifiers[strings.TrimPrefix(strings.ToLower(word), "reason_")] = true
	}
	words := 0
	for name, text := range texts {
		for _, m := range regexp.MustCompile(`\b\w+\.h\b`).FindAllString(regexp.MustCompile(`(?m)^#include.*$`).ReplaceAllString(text, ""), -1) {
			if !known[m] && (path.Ext(name) != ".go" || strings.Contains(text, "bpf/"+m)) {
				t.Errorf("%s names the header %s", name, m)
			}
		}
		if path.Ext(name) != ".md" {
			continue
		}
		for _, m := range regexp.MustCompile("`([a-z]+(?:_[a-z0-9]+)+)`").FindAllStringSubmatch(text, -1) {
			words++
			if metric := regexp.MustCompile(`^(nodeproxy|kubeproxy|process|go|sync|network)_`).MatchString(m[1]); !metric && !known[m[1]] && !identifiers[m[1]] {
				t.Errorf("%s names `%s`, which is nothing of bpf/", name, m[1])
			}
		}
	}
	if words < 50 {
		t.Errorf("only %d names were found", words)
	}

	_, list, _ := strings.Cut(texts["dataplane/ebpf/doc.go"], "# Maps")
	list, _, _ = strings.Cut(list, "A service id stands")
	named := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^//\t([a-z_]+(?:, [a-z_]+)*)(?:  |$)`).FindAllStringSubmatch(list, -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			named[name] = true
		}
	}
	maps := 0
	for _, m := range regexp.MustCompile(`(?m)^MAP\(\w+, (\w+)|^\} (\w+) SEC\("\.maps"\)`).FindAllStringSubmatch(texts["bpf/maps.h"], -1) {
		maps++
		if name := m[1] + m[2]; !named[name] {
			t.Errorf("dataplane/ebpf/doc.go does not have the map %s", name)
		} else {
			delete(named, name)
		}
	}
	if maps < 20 || len(named) > 0 {
		t.Errorf("%d maps; dataplane/ebpf/doc.go has others: %v", maps, named)
	}
	for _, m := range regexp.MustCompile(`(?m)^\s*REASON_(\w+),(.*)$`).FindAllStringSubmatch(texts["bpf/drop.h"], -1) {
		if !strings.Contains(m[2], "/*") {
			t.Errorf("bpf/drop.h does not say what %s means", m[1])
		}
	}
}

// Words that CONTRIBUTING.md's plain English does without.
func TestProseIsPlain(t *testing.T) {
	for name, text := range prose(t) {
		for _, word := range regexp.MustCompile(`(?i)\b(can not|whoever|who watches|no matter who|led (to|through)|by who)\b`).FindAllString(text, -1) {
			t.Errorf("%s says %q", name, word)
		}
	}
}
