package pluginhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/virtplug/virtplug/sdk/pluginrpc"
	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

const (
	// describeTimeout bounds `<program> describe`, which does nothing but print.
	describeTimeout = 10 * time.Second
	// describeBytes bounds what it prints.
	describeBytes = 1 << 20
)

// Describe asks a program who it is, by `<program> describe`: no handshake, no device. The answer is validated, and its
// name must be that of the file. At most 10 seconds; the process is gone when it returns.
func Describe(ctx context.Context, prog Program) (*pluginv1.DescribeResponse, error) {
	d, err := describe(ctx, prog)
	if err != nil {
		return nil, fmt.Errorf("describe plugin: %s: %w", prog.Path, err)
	}
	return d, nil
}

func describe(ctx context.Context, prog Program) (*pluginv1.DescribeResponse, error) {
	exe, err := openProgram(prog.Path, "")
	if err != nil {
		return nil, err
	}
	defer exe.Close() //nolint:errcheck // read only
	limited, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	sink := newLogSink(hclog.NewNullLogger())
	var out bytes.Buffer
	var tooLong bool
	var p *process
	p, err = spawn(command{
		exe: exe, path: prog.Path, args: []string{"describe"},
		stderr: func(f *os.File) { sink.consume(f) },
		stdout: func(f *os.File) {
			n, _ := io.Copy(&out, io.LimitReader(f, describeBytes+1)) // the end, however it came
			if tooLong = n > describeBytes; tooLong {
				cancel()
			}
		},
	})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(limited, p.kill)
	defer stop()
	<-p.ended
	status, signal := p.exit()
	switch {
	case tooLong:
		return nil, fmt.Errorf("it printed more than %d bytes", describeBytes)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case limited.Err() != nil:
		return nil, fmt.Errorf("%w: `describe` took longer than %v%s", ErrStartTimeout, describeTimeout, lastWords(sink.Lines()))
	case status != 0:
		return nil, &ExitError{Plugin: prog.Name, Device: "none", PID: p.pid, Status: status, Signal: signal, Stderr: sink.Lines()}
	}
	d, err := pluginrpc.ParseDescription(out.Bytes())
	if err != nil {
		return nil, err
	}
	return d, checkIdentity(d, prog.Name, 0)
}

// checkIdentity compares who a plugin says it is with who it should be. Empty name and 0 accept any.
func checkIdentity(d *pluginv1.DescribeResponse, name string, deviceID uint32) error {
	var errs []error
	if name != "" && d.GetName() != name {
		errs = append(errs, fmt.Errorf("%w: it says it is %q, its file name says %q", ErrIdentity, d.GetName(), name))
	}
	if deviceID != 0 && d.GetDeviceId() != deviceID {
		errs = append(errs, fmt.Errorf("%w: it serves device type %d, wanted is %d", ErrDeviceType, d.GetDeviceId(), deviceID))
	}
	if !servesAPI(d.GetApiVersions()) {
		errs = append(errs, fmt.Errorf("%w: it serves %v, this launcher speaks %d: rebuild one of them", ErrAPIVersion, d.GetApiVersions(), pluginrpc.APIVersion))
	}
	return errors.Join(errs...)
}

func servesAPI(versions []uint32) bool {
	return slices.Contains(versions, pluginrpc.APIVersion)
}
