package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBrokenLinksAreFound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.md": "# Top: one\n[ok](b.md) [ok](b.md#the-two) [self](#top-one) [far](https://example.org/x)\n" +
			"[gone](c.md) ![gone](x.svg \"t\")\n[head](b.md#three)\n```\n[code](no.md)\n```\n`[code](no.md)`\n",
		"b.md": "## The *two*\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bad, links, err := check(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(strings.Join(bad, "\n"), dir+"/", "")
	want := "a.md:3: c.md: no such file\na.md:3: x.svg: no such file\na.md:4: b.md#three: no such heading"
	if got != want || links != 7 {
		t.Errorf("%d links, broken:\n%s\nwant\n%s", links, got, want)
	}
}
