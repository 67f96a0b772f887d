package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// docs/licences.md lists what is linked into the released program, and nothing there asks
// for more than its text to be passed on.
func TestLicencesAreListed(t *testing.T) {
	var want bytes.Buffer
	if err := table(&want); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/licences.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Errorf("write it anew: go run ./internal/notices table > docs/licences.md\n%s", diff)
	}
	for line := range strings.Lines(want.String()) {
		if cells := strings.Split(line, " | "); len(cells) == 3 && strings.HasPrefix(cells[0], "| ") {
			switch id := strings.TrimSuffix(strings.TrimSpace(cells[2]), " |"); id {
			case "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "licence":
			default:
				t.Errorf("%s has the licence %s", cells[0], id)
			}
		}
	}
}

func TestLicencesAreTold(t *testing.T) {
	for text, want := range map[string]string{
		"Redistribution and use in source and binary\nforms, with or without. Neither the name of X":     "BSD-3-Clause",
		"Redistribution and use in source and binary forms, with or without modification, are permitted": "BSD-2-Clause",
		"Permission is hereby granted, free of charge, to any person":                                    "MIT",
		"Apache License\n  Version 2.0, January 2004":                                                    "Apache-2.0",
		"GNU GENERAL PUBLIC LICENSE Version 3":                                                           "",
		"all rights reserved":                                                                            "",
	} {
		if got := identify(text); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// The release is the same bytes from two directories, knows its version and commit, says
// nothing of where it was built, and has neither lab nor bench; its bill of materials and
// the licence texts name every module in it. make reproducible does the same with nothing
// cached.
func TestReleaseIsReproducible(t *testing.T) {
	sums := map[string][sha256.Size]byte{}
	var dist, first string
	for _, name := range []string{"one", "another"} {
		dir := filepath.Join(t.TempDir(), name)
		command(t, "../..", "sh", "-c", `mkdir -p "$0" && git ls-files -z -co --exclude-standard | tar --null -T - --ignore-failed-read -c | tar -x -C "$0"`, dir)
		command(t, dir, "make", "release", "ARCH=amd64", "VERSION=1.2.3", "COMMIT=0123abc")
		dist = filepath.Join(dir, "dist", "amd64")
		for _, file := range []string{"nodeproxy", "nodeproxy.cdx.json", "THIRD_PARTY_LICENSES"} {
			data, err := os.ReadFile(filepath.Join(dist, file))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(data, []byte(dir)) {
				t.Errorf("%s names the directory that it was built in", file)
			}
			sum := sha256.Sum256(data)
			if before, ok := sums[file]; ok && before != sum {
				t.Errorf("%s differs between %s and %s", file, first, dir)
			}
			sums[file] = sum
		}
		first = dir
	}
	program := filepath.Join(dist, "nodeproxy")
	var version struct{ Version, Revision string }
	if err := json.Unmarshal([]byte(command(t, ".", program, "version", "-o", "json")), &version); err != nil || version.Version != "1.2.3" || version.Revision != "0123abc" {
		t.Errorf("it says %+v, %v", version, err)
	}
	if out, err := exec.Command(program, "lab", "status").CombinedOutput(); err == nil || !strings.Contains(string(out), `unknown command "lab"`) {
		t.Errorf("nodeproxy lab: %v\n%s", err, out)
	}
	bill, err := os.ReadFile(filepath.Join(dist, "nodeproxy.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	texts, err := os.ReadFile(filepath.Join(dist, "THIRD_PARTY_LICENSES"))
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		BomFormat, SpecVersion string
		Metadata               struct{ Component component }
		Components             []component
	}
	if err := json.Unmarshal(bill, &parsed); err != nil || parsed.BomFormat != "CycloneDX" || parsed.Metadata.Component.Version != "1.2.3" {
		t.Errorf("bill of materials: %v, %+v", err, parsed.Metadata)
	}
	named := map[string]string{}
	for _, c := range parsed.Components {
		named[c.Name] = c.Version
	}
	n := 0
	for line := range strings.Lines(command(t, ".", "go", "version", "-m", program)) {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] != "dep" {
			continue
		}
		n++
		if named[words[1]] != words[2] || !strings.Contains(string(texts), "=== "+words[1]+" "+words[2]+" (") {
			t.Errorf("%s %s is in the program, and not in its bill of materials or licences", words[1], words[2])
		}
		if strings.HasPrefix(words[1], "gonum.org/") {
			t.Errorf("%s is of bench", words[1])
		}
	}
	if n < 20 || len(named) != n+1 {
		t.Errorf("%d modules in the program, %d in its bill of materials", n, len(named))
	}
}
