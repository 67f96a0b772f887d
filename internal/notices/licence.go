package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// licence is what a module's authors ask for.
type licence struct {
	id   string // of SPDX
	text string
}

// marks are words that each licence has and no other that is told from it after: the first
// that fits counts.
var marks = []struct {
	id    string
	words []string
}{
	{"Apache-2.0", []string{"Apache License", "Version 2.0"}},
	{"MPL-2.0", []string{"Mozilla Public License", "2.0"}},
	{"ISC", []string{"Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"}},
	{"ISC", []string{"Permission to use, copy, modify, and distribute this software for any purpose with or without fee"}},
	{"BSD-3-Clause", []string{"Redistribution and use in source and binary forms", "Neither the name"}},
	{"BSD-3-Clause", []string{"Redistribution and use in source and binary forms", "may not be used to endorse or promote"}},
	{"BSD-2-Clause", []string{"Redistribution and use in source and binary forms"}},
	{"MIT", []string{"Permission is hereby granted, free of charge"}},
	{"CC0-1.0", []string{"CC0 1.0 Universal"}},
	{"Unlicense", []string{"This is free and unencumbered software"}},
}

// licenceOf reads a module's licence from its directory.
func licenceOf(dir string) (licence, error) {
	if dir == "" {
		return licence{}, errors.New("the module is not in the module cache: go mod download")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return licence{}, fmt.Errorf("read module: %w", err)
	}
	for _, prefix := range []string{"LICENSE", "LICENCE", "COPYING", "UNLICENSE"} {
		for _, e := range entries {
			if e.IsDir() || !strings.HasPrefix(strings.ToUpper(e.Name()), prefix) {
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return licence{}, fmt.Errorf("read licence: %w", err)
			}
			if id := identify(string(data)); id != "" {
				return licence{id, string(data) + notice(dir)}, nil
			}
		}
	}
	return licence{}, fmt.Errorf("no licence that is known in %s", filepath.Base(dir))
}

// notice is what the Apache licence wants to be passed on beside it, if there is one.
func notice(dir string) string {
	data, err := os.ReadFile(filepath.Join(dir, "NOTICE"))
	if err != nil {
		return ""
	}
	return "\n--- NOTICE\n\n" + string(data)
}

func identify(text string) string {
	words := strings.Join(strings.Fields(text), " ")
	for _, m := range marks {
		if !slices.ContainsFunc(m.words, func(w string) bool { return !strings.Contains(words, w) }) {
			return m.id
		}
	}
	return ""
}

// moduleDirs are the directories of all modules of this one's build, by PATH@VERSION.
func moduleDirs() (map[string]string, error) {
	out, err := exec.Command("go", "list", "-m", "-json", "all").Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	dirs := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var m struct{ Path, Version, Dir string }
		switch err := d.Decode(&m); {
		case errors.Is(err, io.EOF):
			return dirs, nil
		case err != nil:
			return nil, fmt.Errorf("go list: %w", err)
		}
		dirs[m.Path+"@"+m.Version] = m.Dir
	}
}

func goLicence() (string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(root)), "LICENSE"))
	if err != nil {
		return "", fmt.Errorf("read Go's licence: %w", err)
	}
	return string(data), nil
}

// table writes the modules that are linked into the released program, as Markdown.
func table(w io.Writer) error {
	out, err := exec.Command("go", "list", "-deps", "-tags", "agent", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}@{{.Version}}{{end}}{{end}}",
		"github.com/nodeproxy/nodeproxy/cmd/nodeproxy").Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	dirs, err := moduleDirs()
	if err != nil {
		return err
	}
	modules := strings.Fields(string(out))
	slices.Sort(modules)
	fmt.Fprintln(w, "# Licences of what nodeproxy is made of\n\nThe modules in a released program, which is built without lab and bench. Written by\n"+
		"`go run ./internal/notices table`; `TestLicencesAreListed` holds it true. The texts are in\n"+
		"THIRD_PARTY_LICENSES of the package and the image.\n\n| module | version | licence |\n|---|---|---|")
	for _, m := range slices.Compact(modules) {
		l, err := licenceOf(dirs[m])
		if err != nil {
			return fmt.Errorf("%s: %w", m, err)
		}
		path, version, _ := strings.Cut(m, "@")
		fmt.Fprintf(w, "| %s | %s | %s |\n", path, version, l.id)
	}
	return nil
}
