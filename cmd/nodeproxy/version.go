package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/metrics"
)

func newVersionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  nodeproxy version\n  nodeproxy version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a := asking{output: output}
			return a.print(cmd.OutOrStdout(), thisVersion(), func(w io.Writer) { fmt.Fprintln(w, versionText()) })
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json or yaml, for scripts")
	return cmd
}

// versions are what nodeproxy version prints for scripts.
type versions struct {
	Version   string `json:"version"`
	Revision  string `json:"revision,omitempty"`
	GoVersion string `json:"goVersion"`
	Platform  string `json:"platform"`
}

func thisVersion() versions {
	return versions{versionNumber(), revision(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
}

// version is set by builds of the Makefile and the image, from the last tag:
// -ldflags "-X main.version=1.2.3".
var version = ""

// commit is set as version is, for builds where Go does not see the repository.
var commit = ""

func versionText() string {
	return fmt.Sprintf("nodeproxy %s (%s)", versionNumber(), runtime.Version())
}

// versionNumber is that of the release, or what the build knows of itself.
func versionNumber() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		return info.Main.Version
	}
	return strings.TrimPrefix(version, "v")
}

// revision is the commit that the program was built from, with + if files had been
// changed; "" where the build did not know.
func revision() string {
	if commit != "" {
		return commit
	}
	info, _ := debug.ReadBuildInfo()
	out := ""
	if info != nil {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				out = s.Value + out
			case s.Key == "vcs.modified" && s.Value == "true":
				out += "+"
			}
		}
	}
	return out
}

// buildOf is what the metrics tell of this program.
func buildOf(mode string) metrics.Build {
	return metrics.Build{Version: versionNumber(), Revision: revision(), GoVersion: runtime.Version(), Mode: mode}
}
