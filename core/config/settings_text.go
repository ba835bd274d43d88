package config

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

// WriteSettings writes a schema for people at a terminal: each setting with its type, default and meaning.
func WriteSettings(w io.Writer, s *pluginv1.Schema) error {
	var b bytes.Buffer
	writeSettings(&b, s, "  ")
	_, err := w.Write(b.Bytes())
	return err
}

func writeSettings(b *bytes.Buffer, s *pluginv1.Schema, indent string) {
	for _, a := range s.GetAttributes() {
		fmt.Fprintf(b, "%s%s  (%s", indent, a.GetName(), typeName(a.GetType()))
		switch def := strings.Trim(defaultText(a), "`"); {
		case a.GetRequired():
			b.WriteString(", required")
		case def != "":
			b.WriteString(", default " + printable(def))
		}
		b.WriteString(")\n")
		if m := strings.ReplaceAll(meaning(a), "`", ""); m != "" {
			fmt.Fprintf(b, "%s    %s\n", indent, printable(m))
		}
	}
	for _, block := range s.GetBlocks() {
		label := ""
		if block.GetLabel() != "" {
			label = ` "` + strings.ToUpper(block.GetLabel()) + `"`
		}
		fmt.Fprintf(b, "%s%s%s { … }  (%s)\n%s    %s\n", indent, block.GetName(), label, count(block), indent, printable(block.GetDescription()))
		writeSettings(b, block.GetSchema(), indent+"    ")
	}
}
