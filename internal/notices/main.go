// Command notices tells what a program of ours is made of: its modules and their
// licences, as a table, as texts, or as a bill of materials (CycloneDX).
package main

import (
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

const usage = "use: notices table | texts BINARY | sbom BINARY VERSION"

func main() {
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "notices:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "table":
		return table(w)
	case len(args) == 2 && args[0] == "texts":
		return texts(w, args[1])
	case len(args) == 3 && args[0] == "sbom":
		return sbom(w, args[1], args[2])
	}
	return fmt.Errorf("%q: %s", strings.Join(args, " "), usage)
}

// part is a module that a program is made of.
type part struct {
	path, version, sum string
	licence            licence
}

// parts are the modules in a binary, with what their authors ask for.
func parts(binary string) (info *buildinfo.BuildInfo, out []part, err error) {
	if info, err = buildinfo.ReadFile(binary); err != nil {
		return nil, nil, fmt.Errorf("read what %s is made of: %w", binary, err)
	}
	dirs, err := moduleDirs()
	if err != nil {
		return nil, nil, err
	}
	for _, dep := range info.Deps {
		if dep.Replace != nil {
			dep = dep.Replace
		}
		l, err := licenceOf(dirs[dep.Path+"@"+dep.Version])
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", dep.Path, err)
		}
		out = append(out, part{dep.Path, dep.Version, dep.Sum, l})
	}
	return info, out, nil
}

// texts writes what has to go with a binary: the licences of all that is in it.
func texts(w io.Writer, binary string) error {
	info, all, err := parts(binary)
	if err != nil {
		return err
	}
	goText, err := goLicence()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "nodeproxy is made of these modules, under their own licences.\n\n=== the Go standard library %s (BSD-3-Clause)\n\n%s\n", info.GoVersion, goText)
	for _, p := range all {
		fmt.Fprintf(w, "=== %s %s (%s)\n\n%s\n", p.path, p.version, p.licence.id, p.licence.text)
	}
	return nil
}

// component is one of CycloneDX 1.5, as far as it is used.
type component struct {
	Type     string     `json:"type"`
	Name     string     `json:"name"`
	Version  string     `json:"version"`
	PURL     string     `json:"purl"`
	Ref      string     `json:"bom-ref"`
	Licenses []any      `json:"licenses,omitempty"`
	Extra    []property `json:"properties,omitempty"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func componentOf(kind, path, version, id string) component {
	purl := "pkg:golang/" + path + "@" + version
	return component{Type: kind, Name: path, Version: version, PURL: purl, Ref: purl,
		Licenses: []any{map[string]any{"license": map[string]string{"id": id}}}}
}

// sbom writes a bill of materials of a binary, whose version -trimpath leaves out of what
// Go knows of it. It has no time and no serial number, so
// that it is the same for the same binary.
func sbom(w io.Writer, binary, version string) error {
	info, all, err := parts(binary)
	if err != nil {
		return err
	}
	components := []component{componentOf("library", "stdlib", strings.TrimPrefix(info.GoVersion, "go"), "BSD-3-Clause")}
	for _, p := range all {
		c := componentOf("library", p.path, p.version, p.licence.id)
		c.Extra = []property{{"nodeproxy:go.sum", p.sum}}
		components = append(components, c)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
		"metadata":   map[string]any{"component": componentOf("application", info.Main.Path, version, "Apache-2.0")},
		"components": components,
	})
}
