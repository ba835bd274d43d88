package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/mitchellh/go-wordwrap"
)

// Sources are the texts that diagnostics quote, by file name. A flag's file name is the flag: "--block".
type Sources map[string]*hcl.File

// Error is all that is wrong with a configuration.
type Error struct {
	Diagnostics hcl.Diagnostics
	Sources     Sources
}

// Error writes one line for each diagnostic, without snippets; WriteText writes them for people.
func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Diagnostics))
	for _, d := range e.Diagnostics {
		lines = append(lines, fmt.Sprintf("%s: %s: %s", place(subject(d)), d.Summary, d.Detail))
	}
	return strings.Join(lines, "\n")
}

// newError makes an error of diags, sorted by place; nil if there are none.
func newError(diags hcl.Diagnostics, sources Sources) error {
	if len(diags) == 0 {
		return nil
	}
	slices.SortStableFunc(diags, func(a, b *hcl.Diagnostic) int {
		ra, rb := subject(a), subject(b)
		return cmp.Or(cmp.Compare(ra.Filename, rb.Filename), cmp.Compare(ra.Start.Byte, rb.Start.Byte), cmp.Compare(a.Summary, b.Summary), cmp.Compare(a.Detail, b.Detail))
	})
	return &Error{Diagnostics: diags, Sources: sources}
}

func subject(d *hcl.Diagnostic) hcl.Range {
	if d.Subject == nil {
		return hcl.Range{}
	}
	return *d.Subject
}

// isFlag tells whether a file name is that of a command-line flag.
func isFlag(filename string) bool { return strings.HasPrefix(filename, "--") }

// place writes where r begins: "vm.hcl:7" or "--block".
func place(r hcl.Range) string {
	switch {
	case r.Filename == "":
		return "configuration"
	case isFlag(r.Filename) || r.Start.Line == 0:
		return r.Filename
	}
	return fmt.Sprintf("%s:%d", r.Filename, r.Start.Line)
}

// WriteText writes the diagnostics with the lines they are about. width is the terminal's, 0: no wrapping.
func (e *Error) WriteText(w io.Writer, width uint, colour bool) error {
	var buf bytes.Buffer
	for i, d := range e.Diagnostics {
		if i > 0 {
			buf.WriteByte('\n')
		}
		label := "Error: "
		if colour {
			label = "\x1b[1;31mError:\x1b[0m "
		}
		buf.WriteString(label + printable(d.Summary) + "\n")
		if d.Subject != nil {
			e.writeSnippet(&buf, *d.Subject, colour)
		}
		if d.Detail != "" {
			detail := printable(d.Detail)
			if width > 4 {
				detail = wordwrap.WrapString(detail, width-2)
			}
			buf.WriteString("  " + strings.ReplaceAll(detail, "\n", "\n  ") + "\n")
		}
	}
	_, err := w.Write(buf.Bytes())
	return err
}

// writeSnippet writes the first line of r with r underlined.
func (e *Error) writeSnippet(buf *bytes.Buffer, r hcl.Range, colour bool) {
	file := e.Sources[r.Filename]
	where := "  on " + printable(r.Filename)
	if !isFlag(r.Filename) && r.Start.Line > 0 {
		where += fmt.Sprintf(" line %d", r.Start.Line)
	}
	if file == nil || r.Start.Line == 0 || r.Start.Byte > len(file.Bytes) {
		buf.WriteString(where + ":\n")
		return
	}
	if nav, ok := file.Nav.(interface{ ContextString(int) string }); ok {
		if in := nav.ContextString(r.Start.Byte); in != "" {
			where += ", in " + printable(in)
		}
	}
	buf.WriteString(where + ":\n")
	begin := bytes.LastIndexByte(file.Bytes[:r.Start.Byte], '\n') + 1
	end := len(file.Bytes)
	if i := bytes.IndexByte(file.Bytes[r.Start.Byte:], '\n'); i >= 0 {
		end = r.Start.Byte + i
	}
	last := max(min(r.End.Byte, end), r.Start.Byte)
	before, marked, after := file.Bytes[begin:r.Start.Byte], file.Bytes[r.Start.Byte:last], file.Bytes[last:end]
	number := fmt.Sprintf("%4d | ", r.Start.Line)
	if isFlag(r.Filename) {
		number = "     | "
	}
	b, m, a := printable(string(before)), printable(string(marked)), printable(string(after))
	hint := strings.Repeat("^", max(1, utf8.RuneCountInString(m)))
	if colour {
		m, hint = "\x1b[1;4m"+m+"\x1b[0m", "\x1b[31m"+hint+"\x1b[0m"
	}
	pad := strings.Map(func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}, b)
	fmt.Fprintf(buf, "%s%s%s%s\n     | %s%s\n", number, b, m, strings.TrimRight(a, "\r"), pad, hint)
}

// printable replaces what would move the cursor or change colours: the text may come from anybody.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return '·'
	}, s)
}

// jsonDiagnostic is a diagnostic for programs.
type jsonDiagnostic struct {
	Summary string `json:"summary"`
	Detail  string `json:"detail,omitempty"`
	File    string `json:"file,omitempty"`
	Flag    string `json:"flag,omitempty"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
}

// MarshalJSON writes a list of objects with summary, detail, and file, line and column, or flag.
func (e *Error) MarshalJSON() ([]byte, error) {
	out := make([]jsonDiagnostic, 0, len(e.Diagnostics))
	for _, d := range e.Diagnostics {
		r := subject(d)
		j := jsonDiagnostic{Summary: d.Summary, Detail: d.Detail}
		if isFlag(r.Filename) {
			j.Flag = r.Filename
		} else {
			j.File, j.Line, j.Column = r.Filename, r.Start.Line, r.Start.Column
		}
		out = append(out, j)
	}
	return json.Marshal(out)
}

// At returns err as a diagnostic at an attribute of a device: for what the plugin or the opening of files says of it. attribute
// is a path such as "port.0.socket"; the nearest written part of it is shown.
func (vm *VM) At(device, attribute string, err error) error {
	for _, d := range vm.Devices {
		if d.Name != device {
			continue
		}
		summary := fmt.Sprintf("Device %q cannot be made", device)
		return newError(hcl.Diagnostics{{
			Severity: hcl.DiagError, Summary: summary, Detail: asSentence(err), Subject: nearest(d.ranges, attribute).Ptr(),
		}}, vm.sources)
	}
	return err
}

// AtVM returns err as a diagnostic at an attribute of the vm block ("memory", "kernel").
func (vm *VM) AtVM(attribute string, err error) error {
	return newError(hcl.Diagnostics{{
		Severity: hcl.DiagError, Summary: "The machine cannot run", Detail: asSentence(err), Subject: nearest(vm.ranges, attribute).Ptr(),
	}}, vm.sources)
}

// Join makes one configuration error of several; other errors are joined behind it.
func Join(errs ...error) error {
	var all Error
	var others []error
	for _, err := range errs {
		if ce, ok := errors.AsType[*Error](err); ok {
			all.Diagnostics = append(all.Diagnostics, ce.Diagnostics...)
			all.Sources = ce.Sources
		} else if err != nil {
			others = append(others, err)
		}
	}
	if len(all.Diagnostics) > 0 && len(others) == 0 {
		return &all
	}
	if len(all.Diagnostics) > 0 {
		others = append(others, &all)
	}
	return errors.Join(others...)
}

// nearest returns the place of path or of the closest thing around it.
func nearest(ranges map[string]hcl.Range, path string) hcl.Range {
	for {
		if r, ok := ranges[path]; ok {
			return r
		}
		i := strings.LastIndexByte(path, '.')
		if i < 0 {
			return ranges[""]
		}
		path = path[:i]
	}
}

// asSentence makes a sentence of an error's text.
func asSentence(err error) string {
	s := err.Error()
	if s == "" {
		return ""
	}
	word, _, _ := strings.Cut(s, " ")
	if !strings.ContainsFunc(word, func(r rune) bool { return !unicode.IsLetter(r) }) { // no path, name or number
		r, n := utf8.DecodeRuneInString(s)
		s = string(unicode.ToUpper(r)) + s[n:]
	}
	if strings.ContainsRune(".?!", rune(s[len(s)-1])) {
		return s
	}
	return s + "."
}
