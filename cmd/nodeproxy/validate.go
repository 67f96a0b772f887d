package main

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/nodeproxy/nodeproxy/service"
	"github.com/nodeproxy/nodeproxy/source"
)

func newValidateCommand() *cobra.Command {
	var limit int64
	cmd := &cobra.Command{
		Use:   "validate FILE...",
		Short: "Check manifests for what nodeproxy would not serve",
		Long: `Read manifests as nodeproxy run --source file:PATH does, and print what cannot be read and
what would not be served as it is written, with file, document and field, and what is
wrong between objects: two Services of one address, or a port that no EndpointSlice has. The
exit code is 1 if there is anything. Nothing is changed, and no root is needed.`,
		Example: "  nodeproxy validate /etc/nodeproxy/manifests\n  nodeproxy validate web.yaml endpoints.yaml",
		Args:    between(1, -1, "name the manifests", "validate /etc/nodeproxy/manifests"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return validateManifests(cmd.OutOrStdout(), args, limit)
		},
	}
	cmd.Flags().Int64Var(&limit, "max-manifest-size", source.DefaultMaxFile, "bytes above which a file is not read")
	return cmd
}

// validateManifests prints what is wrong with manifests, in files or directories.
func validateManifests(w io.Writer, paths []string, limit int64) error {
	files, problems := 0, 0
	say := func(format string, args ...any) {
		problems++
		fmt.Fprintf(w, format+"\n", args...)
	}
	all := service.Changes{Complete: true}
	for _, path := range paths {
		names, err := source.Manifests(path)
		if err != nil {
			return fmt.Errorf("validate: %w", err)
		}
		for _, name := range names {
			files++
			for _, text := range addManifest(&all, name, limit) {
				say("%s: %s", name, text)
			}
		}
	}
	if files == 0 {
		return fmt.Errorf("no *.yaml, *.yml or *.json file is in %s", orList(paths))
	}
	for _, text := range problemsBetween(all) {
		say("%s", text)
	}
	if problems > 0 {
		return withCode(codeNo, fmt.Errorf("%s in %s", numberOf(problems, "problem"), numberOf(files, "file")))
	}
	fmt.Fprintf(w, "%s, %s, %s: no problem found\n", numberOf(files, "file"), numberOf(len(all.Services), "Service"), numberOf(len(all.EndpointSlices), "EndpointSlice"))
	return nil
}

// addManifest reads a file, and returns what is wrong with it.
func addManifest(all *service.Changes, name string, limit int64) (out []string) {
	text, err := source.ReadFile(name, limit)
	if err != nil {
		return []string{err.Error()}
	}
	c, notes, err := source.DecodeAll(text)
	var each source.DocumentErrors
	if errors.As(err, &each) {
		for _, e := range each {
			out = append(out, e.Error())
		}
	}
	all.Services = append(all.Services, c.Services...)
	all.EndpointSlices = append(all.EndpointSlices, c.EndpointSlices...)
	all.Nodes = append(all.Nodes, c.Nodes...)
	return append(out, notes...)
}

// problemsBetween resolves all objects together, as a node would.
func problemsBetween(all service.Changes) (out []string) {
	seen := map[service.Name]bool{}
	for _, s := range all.Services {
		if seen[s.Name] {
			out = append(out, fmt.Sprintf("Service %s: it is there twice; the first counts", s.Name))
		}
		seen[s.Name] = true
	}
	r := service.NewResolver(service.Config{NodeName: "validate"})
	r.Apply(all)
	for name, res := range r.Table().Services {
		for _, p := range res.Problems {
			out = append(out, fmt.Sprintf("Service %s: %s: %s", name, p.Reason, p.Message))
		}
	}
	for _, s := range all.EndpointSlices {
		if name := (service.Name{Namespace: s.Name.Namespace, Name: s.Service}); !seen[name] {
			out = append(out, fmt.Sprintf("EndpointSlice %s: there is no Service %s", s.Name, name))
		}
	}
	slices.Sort(out)
	return out
}
