package test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// licences that what we ship may have, by sentences of their texts in small
// letters.
var licences = []struct {
	name      string
	sentences []string
}{
	{"Apache-2.0", []string{"apache license", "version 2.0"}},
	{"MIT", []string{"permission is hereby granted, free of charge", "the above copyright notice and this permission notice"}},
	{"BSD", []string{"redistribution and use in source and binary forms", "conditions are met"}},
	{"ISC", []string{"permission to use, copy, modify, and/or distribute this software for any purpose"}},
}

// refused are licences of which one sentence is enough.
var refused = []string{"gnu affero general public license", "gnu general public license", "gpl v2", "gnu lesser general public license", "mozilla public license", "business source license", "commons clause", "server side public license", "elastic license"}

// bothWays are modules that give the choice of an allowed licence and another.
var bothWays = map[string]string{
	"kernel.org/pub/linux/libs/security/libcap/psx": "BSD or GPL-2.0",
}

// Every module that a program of ours links may be shipped with it.
func TestLicences(t *testing.T) {
	seen := map[string]bool{}
	for _, line := range list(t, "-deps", "-f", "{{with .Module}}{{.Path}}={{.Dir}}{{end}}", "./cmd/...") {
		path, dir, ok := strings.Cut(line, "=")
		if !ok || seen[path] || path == "kms-plugin.io" {
			continue
		}
		seen[path] = true
		texts := licenceTexts(t, dir)
		found := licenceOf(texts)
		if found == "" {
			t.Errorf("%s: no licence that is known and allowed in %s", path, dir)
		}
		for _, r := range refused {
			if _, both := bothWays[path]; !both && strings.Contains(texts, r) {
				t.Errorf("%s: its licence speaks of the %s", path, r)
			}
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d modules were looked at", len(seen))
	}
}

// licenceTexts are all licence files of a module, in small letters with single
// spaces.
func licenceTexts(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if e.IsDir() || !slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(strings.ToLower(strings.Join(strings.Fields(string(data)), " ")) + "\n")
	}
	return all.String()
}

func licenceOf(text string) string {
	for _, l := range licences {
		if !slices.ContainsFunc(l.sentences, func(s string) bool { return !strings.Contains(text, s) }) {
			return l.name
		}
	}
	return ""
}
