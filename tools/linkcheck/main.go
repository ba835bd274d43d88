// Command linkcheck checks that every relative link of the repository's Markdown files leads to a file, and every #fragment
// to a heading. Links to other hosts are not followed.
//
//	go run ./tools/linkcheck [DIR]
package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
)

func main() {
	root := "."
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	bad, links, err := check(root)
	if err != nil {
		fmt.Fprintf(os.Stderr, "linkcheck: %v\n", err)
		os.Exit(2)
	}
	for _, b := range bad {
		fmt.Println(b)
	}
	fmt.Printf("linkcheck: %d links, %d broken\n", links, len(bad))
	if len(bad) > 0 {
		os.Exit(1)
	}
}

// link matches [text](target) and ![text](target "title").
var link = regexp.MustCompile(`\]\(([^)\s]+)(?:\s+"[^"]*")?\)`)

// check returns the broken links as "file:line: target: what is wrong", and how many links there are.
func check(root string) (bad []string, links int, err error) {
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error { //nolint:gosec // G703: a developer's tool, on the directory that it is given
		if err != nil {
			return err
		}
		if d.IsDir() && p != root && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".github" || d.Name() == "tmp" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(p) != ".md" {
			return nil
		}
		text, err := os.ReadFile(p) //nolint:gosec // G304: a file of the repository
		if err != nil {
			return err
		}
		for n, line := range lines(string(text)) {
			for _, m := range link.FindAllStringSubmatch(line, -1) {
				links++
				if what := broken(p, m[1]); what != "" {
					bad = append(bad, fmt.Sprintf("%s:%d: %s: %s", p, n+1, m[1], what))
				}
			}
		}
		return nil
	})
	return bad, links, err
}

// lines returns the lines of a Markdown text, empty where they are code.
func lines(text string) []string {
	out := strings.Split(text, "\n")
	code := false
	for i, l := range out {
		fence := strings.HasPrefix(strings.TrimSpace(l), "```")
		if code || fence {
			out[i] = ""
		}
		code = code != fence
		out[i] = inlineCode.ReplaceAllString(out[i], "")
	}
	return out
}

var inlineCode = regexp.MustCompile("`[^`]*`")

// broken says what is wrong with the target of a link in file; "" if nothing.
func broken(file, target string) string {
	if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
		return ""
	}
	name, fragment, _ := strings.Cut(target, "#")
	to := file
	if name != "" {
		to = filepath.Join(filepath.Dir(file), filepath.FromSlash(name))
		if _, err := os.Stat(to); err != nil { //nolint:gosec // G703: a developer's tool, on files of the repository
			return "no such file"
		}
	}
	if fragment == "" || filepath.Ext(to) != ".md" {
		return ""
	}
	text, err := os.ReadFile(to) //nolint:gosec // G304: a file of the repository
	if err != nil {
		return err.Error()
	}
	for _, l := range lines(string(text)) {
		if h := strings.TrimLeft(l, "#"); h != l && strings.HasPrefix(h, " ") && anchor(h) == fragment {
			return ""
		}
	}
	return "no such heading"
}

// anchor is the fragment that GitHub makes of a heading.
func anchor(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(strings.TrimSpace(heading)) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}
