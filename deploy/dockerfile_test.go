package deploy

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	digest   = regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)
	variable = regexp.MustCompile(`^\$\{?([A-Z_]+)\}?$`)
)

// looseImages are the images that a Dockerfile names neither by digest nor by a build
// argument, to which a release gives a digest. Stages are no images.
func looseImages(dockerfile string) (out []string) {
	stages, args, inStage := []string{"scratch"}, []string(nil), false
	text := strings.ReplaceAll(dockerfile, "\\\n", " ")
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		image := ""
		isOption := func(w string) bool { return strings.HasPrefix(w, "--") }
		options := slices.DeleteFunc(slices.Clone(words[1:]), func(w string) bool { return !isOption(w) })
		rest := slices.DeleteFunc(words[1:], isOption)
		switch strings.ToUpper(words[0]) {
		case "ARG":
			if name, _, _ := strings.Cut(rest[0], "="); !inStage {
				args = append(args, name)
			}
		case "FROM":
			image, inStage = rest[0], true
		case "COPY", "RUN":
			for _, o := range options {
				for part := range strings.SplitSeq(strings.TrimPrefix(o, "--mount="), ",") {
					if from, ok := strings.CutPrefix(strings.TrimPrefix(part, "--"), "from="); ok {
						image = from
					}
				}
			}
		}
		if image != "" && !slices.Contains(stages, image) && !digest.MatchString(image) {
			if arg := variable.FindStringSubmatch(image); arg == nil || !slices.Contains(args, arg[1]) {
				out = append(out, image)
			}
		}
		if strings.EqualFold(words[0], "FROM") && len(rest) == 3 {
			stages = append(stages, rest[2])
		}
	}
	return out
}

// A release names its base images by digest: each is a build argument.
func TestBaseImagesAreArguments(t *testing.T) {
	text, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if loose := looseImages(string(text)); len(loose) > 0 {
		t.Errorf("named neither by digest nor by a build argument: %v", loose)
	}
	if n := strings.Count(string(text), "\nFROM "); n < 3 {
		t.Errorf("%d stages only", n)
	}
	sum := "@sha256:" + strings.Repeat("0a", 32)
	for dockerfile, want := range map[string]string{
		"FROM debian:bookworm":                               "[debian:bookworm]",
		"FROM debian:bookworm" + sum:                         "[]",
		"FROM debian@sha256:12":                              "[debian@sha256:12]",
		"ARG A=debian\nFROM --platform=$P ${A} AS b\nFROM b": "[]",
		"FROM $A": "[$A]",
		"FROM x" + sum + "\nARG A=debian\nFROM $A":                      "[$A]",
		"FROM x" + sum + " AS b\nCOPY --from=b /a /b":                   "[]",
		"FROM x" + sum + "\nCOPY --link --from=busybox /a /b":           "[busybox]",
		"FROM x" + sum + "\nRUN --mount=type=bind,from=alpine:3,x=y ls": "[alpine:3]",
		"FROM scratch\nRUN \\\n --mount=from=alpine ls":                 "[alpine]",
	} {
		if got := fmt.Sprint(looseImages(dockerfile)); got != want {
			t.Errorf("%q: %s, want %s", dockerfile, got, want)
		}
	}
}
