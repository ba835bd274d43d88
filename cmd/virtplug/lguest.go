package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/virtplug/virtplug/core/config"
	"github.com/virtplug/virtplug/core/control"
	controlv1 "github.com/virtplug/virtplug/core/control/v1"
	"github.com/virtplug/virtplug/core/launcher"
	"github.com/virtplug/virtplug/core/transport/lguest"
	"github.com/virtplug/virtplug/sdk/virtio"
)

func (a *app) lguestCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "lguest",
		Short:   "Look at the lguest bus",
		Example: "  virtplug lguest dump demo",
	}
	var offset string
	var asJSON bool
	dump := &cobra.Command{
		Use:   "dump VM|FILE|-",
		Short: "Show the device page of the lguest bus as a table",
		Long: `Show the device page of the lguest bus as a table, with the offset of every field. It is that of a running VM (its name or its
launcher's process number), or is read from a file, or from standard input (-). A FILE is written with a slash, ./page.bin, if
a VM has the same name. A file may be a dump of guest memory: the page is just above the highest RAM address, which --offset
tells.

A guest can write anything to its device page. What is wrong with it is told below the table, and the exit status is 1 then.
Whether the rings lie in guest memory is not checked.`,
		Example: `  virtplug lguest dump demo
  virtplug lguest dump --offset 256M memory.bin
  virtplug lguest dump --json ./page.bin | jq '.devices[].type_name'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeVMOrFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := parseOffset(offset)
			if err != nil {
				return usageError{fmt.Errorf("--offset: %w", err)}
			}
			b, err := a.devicePage(cmd.Context(), args[0], at, cmd.Flags().Changed("offset"))
			if err != nil {
				return err
			}
			return a.lguestDump(lguest.Parse(b, lguest.Surroundings{}), b, asJSON)
		},
	}
	dump.Flags().StringVar(&offset, "offset", "0", "where the page starts in FILE, in bytes: `N`, 0xN or 256M")
	dump.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(dump)
	return group(cmd)
}

// completeVMOrFile completes names of running VMs, and files.
func completeVMOrFile(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	words, _ := completeVM(cmd, args, toComplete)
	return words, cobra.ShellCompDirectiveDefault
}

// parseOffset reads a number of bytes, decimal, hexadecimal or with a unit.
func parseOffset(s string) (int64, error) {
	if digits, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		n, err := strconv.ParseInt(digits, 16, 64)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("%q is not a number of bytes", s)
		}
		return n, nil
	}
	return config.ParseSize(s)
}

// devicePage reads a page from where the argument says: at most lguest.PageSize bytes.
func (a *app) devicePage(ctx context.Context, from string, offset int64, offsetSet bool) ([]byte, error) {
	if from == "-" {
		n, err := io.CopyN(io.Discard, os.Stdin, offset)
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("standard input: offset %#x: it has only %d bytes", offset, n)
		}
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		return readPage(os.Stdin, "standard input")
	}
	if strings.Contains(from, "/") {
		return filePage(from, offset)
	}
	c, err := control.Find(ctx, launcher.DefaultRunRoot(), from)
	if err != nil {
		if _, statErr := os.Stat(from); errors.Is(err, control.ErrNoVM) && statErr == nil {
			return filePage(from, offset)
		}
		return nil, fmt.Errorf("lguest dump: %w; nor is there such a file", err)
	}
	if offsetSet {
		return nil, errors.Join(usageError{fmt.Errorf("--offset is for files, and %s is a running VM: write ./%s for the file", from, from)}, c.Close())
	}
	r, err := c.LguestPage(ctx, &controlv1.LguestPageRequest{})
	if err := errors.Join(plain(err), c.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return r.GetPage(), nil
}

func filePage(path string, offset int64) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // G304: the user's own
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() && offset > 0 && offset >= st.Size() {
		return nil, fmt.Errorf("%s: offset %#x: it has only %d bytes", path, offset, st.Size())
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil && offset > 0 {
		return nil, fmt.Errorf("%s: offset %#x: %w", path, offset, err)
	}
	return readPage(f, path)
}

func readPage(r io.Reader, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, lguest.PageSize))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// lguestDump prints a page; b is what it was read from.
func (a *app) lguestDump(p *lguest.Page, b []byte, asJSON bool) error {
	var err error
	if asJSON {
		err = a.printJSON(pageJSON(p))
	} else {
		err = writePage(a.stdout, p, b)
		for _, q := range p.Problems {
			fmt.Fprintf(a.stderr, "%sdevice page: %v\n", a.prefix(), q)
		}
	}
	if err == nil && len(p.Problems) > 0 {
		err = exitStatus{code: exitError}
	}
	return err
}

// rowBytes is how many bytes of a long field one line of the table shows.
const rowBytes = 16

// writePage prints the table.
func writePage(w io.Writer, p *lguest.Page, b []byte) error {
	var text bytes.Buffer
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "OFFSET\tDEVICE\tFIELD\tBYTES\tMEANING")
	for i := range p.Records {
		r := &p.Records[i]
		row := func(at, n int, field, meaning string) {
			fmt.Fprintf(t, "0x%03x\t%d\t%s\t% x\t%s\n", at, i, field, b[at:at+n], meaning)
		}
		long := func(at, n int, field string, meaning func(from, to int) string) {
			for k := 0; k < n; k += rowBytes {
				end := min(k+rowBytes, n)
				row(at+k, end-k, field, meaning(k, end))
				field = strings.SplitN(field, "+", 2)[0] + "+" + strconv.Itoa(end)
			}
		}
		row(r.Offset, 1, "type", virtio.DeviceID(r.Type).String())
		row(r.Offset+1, 1, "num_vq", strconv.Itoa(len(r.Rings)))
		row(r.Offset+2, 1, "feature_len", strconv.Itoa(len(r.Host)))
		row(r.Offset+3, 1, "config_len", strconv.Itoa(len(r.Config)))
		row(r.StatusOffset(), 1, "status", strings.Join(statusNames(r.Status), " "))
		for k, v := range r.Rings {
			row(r.RingOffset(k), 8, fmt.Sprintf("vq %d", k), fmt.Sprintf("num %d, irq %d, pfn %#x: ring at %v", v.Num, v.IRQ, v.PFN, v.Address()))
		}
		long(r.HostOffset(), len(r.Host), "offered", func(from, to int) string { return bitList(r.Host, from, to) })
		long(r.GuestOffset(), len(r.Guest), "accepted", func(from, to int) string { return bitList(r.Guest, from, to) })
		long(r.ConfigOffset(), len(r.Config), "config", func(int, int) string { return "" })
	}
	if p.End >= 0 {
		fmt.Fprintf(t, "0x%03x\t\ttype\t00\tend of the list; devices: %d\n", p.End, len(p.Records))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for line := range bytes.Lines(text.Bytes()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(string(line), " \n")); err != nil {
			return err
		}
	}
	return nil
}

// bits are the numbers of the bits in bytes from to to of a bitmap.
func bits(bitmap []byte, from, to int) []int {
	out := []int{}
	for i := 8 * from; i < 8*to; i++ {
		if bitmap[i/8]&(1<<(i%8)) != 0 {
			out = append(out, i)
		}
	}
	return out
}

func bitList(bitmap []byte, from, to int) string {
	list := bits(bitmap, from, to)
	if len(list) == 0 {
		return "no bits"
	}
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = strconv.Itoa(n)
	}
	return "bits " + strings.Join(words, ",")
}

// statusNames are the names of the status bits (VIRTIO 1.2, 2.1).
func statusNames(s virtio.Status) []string {
	out := []string{}
	for _, b := range []struct {
		bit  virtio.Status
		name string
	}{
		{virtio.StatusAcknowledge, "ACKNOWLEDGE"}, {virtio.StatusDriver, "DRIVER"}, {virtio.StatusDriverOK, "DRIVER_OK"},
		{virtio.StatusFeaturesOK, "FEATURES_OK"}, {virtio.StatusNeedsReset, "DEVICE_NEEDS_RESET"}, {virtio.StatusFailed, "FAILED"},
	} {
		if s.Has(b.bit) {
			out = append(out, b.name)
			s &^= b.bit
		}
	}
	if s != 0 {
		out = append(out, fmt.Sprintf("%#x", uint8(s)))
	}
	return out
}

// dumpedPage and what is below it is what lguest dump --json prints; offsets are from the start of the page.
type dumpedPage struct {
	Version int            `json:"schema_version"`
	Devices []dumpedDevice `json:"devices"`
	// End is the offset of the type 0 that ends the list; null: there is none.
	End      *int             `json:"end"`
	Problems []lguest.Problem `json:"problems"`
}

type dumpedDevice struct {
	Offset       int             `json:"offset"`
	Type         uint8           `json:"type"`
	TypeName     string          `json:"type_name"`
	Status       uint8           `json:"status"`
	StatusNames  []string        `json:"status_names"`
	StatusOffset int             `json:"status_offset"`
	Rings        []dumpedRing    `json:"rings"`
	Offered      *dumpedFeatures `json:"offered,omitempty"`
	Accepted     *dumpedFeatures `json:"accepted,omitempty"`
	Config       *dumpedBytes    `json:"config,omitempty"`
}

type dumpedRing struct {
	Offset  int    `json:"offset"`
	Num     uint16 `json:"num"`
	IRQ     uint16 `json:"irq"`
	PFN     uint32 `json:"pfn"`
	Address uint64 `json:"address"`
}

type dumpedFeatures struct {
	dumpedBytes
	Bits []int `json:"bits"`
}

type dumpedBytes struct {
	Offset int `json:"offset"`
	// Hex is two digits a byte.
	Hex string `json:"hex"`
}

func pageJSON(p *lguest.Page) dumpedPage {
	out := dumpedPage{Version: schemaVersion, Devices: []dumpedDevice{}, Problems: append([]lguest.Problem{}, p.Problems...)}
	if p.End >= 0 {
		out.End = &p.End
	}
	for i := range p.Records {
		r := &p.Records[i]
		d := dumpedDevice{
			Offset: r.Offset, Type: r.Type, TypeName: virtio.DeviceID(r.Type).String(),
			Status: uint8(r.Status), StatusNames: statusNames(r.Status), StatusOffset: r.StatusOffset(), Rings: []dumpedRing{},
		}
		for k, v := range r.Rings {
			d.Rings = append(d.Rings, dumpedRing{r.RingOffset(k), v.Num, v.IRQ, v.PFN, uint64(v.Address())})
		}
		if len(r.Host) > 0 {
			d.Offered = &dumpedFeatures{dumpedBytes{r.HostOffset(), hex.EncodeToString(r.Host)}, bits(r.Host, 0, len(r.Host))}
			d.Accepted = &dumpedFeatures{dumpedBytes{r.GuestOffset(), hex.EncodeToString(r.Guest)}, bits(r.Guest, 0, len(r.Guest))}
		}
		if len(r.Config) > 0 {
			d.Config = &dumpedBytes{r.ConfigOffset(), hex.EncodeToString(r.Config)}
		}
		out.Devices = append(out.Devices, d)
	}
	return out
}
