package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	controlv1 "github.com/virtplug/virtplug/core/control/v1"
)

// ErrNoVM says that there is no running VM of that name.
var ErrNoVM = errors.New("no such running VM")

// dialWait is how long a launcher may take to answer; one that does not is dead or stuck.
const dialWait = 5 * time.Second

// Client speaks to one launcher.
type Client struct {
	controlv1.ControlClient
	// Dir is its run directory; Description what it said when it was found.
	Dir         string
	Description *controlv1.DescribeResponse
	conn        *grpc.ClientConn
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// dial connects to the launcher of a run directory and asks who it is.
func dial(ctx context.Context, dir string) (*Client, error) {
	conn, err := grpc.NewClient("unix:"+filepath.Join(dir, SocketName), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	c := &Client{ControlClient: controlv1.NewControlClient(conn), Dir: dir, conn: conn}
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	if c.Description, err = c.Describe(ctx, &controlv1.DescribeRequest{}); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket of %s: %w", dir, err), conn.Close())
	}
	return c, nil
}

// All connects to every running VM below root. VMs that do not answer are left out, and errs tells why.
func All(ctx context.Context, root string) (clients []*Client, errs []error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		return nil, errs
	}
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		if _, err := os.Stat(filepath.Join(dir, SocketName)); err != nil {
			continue // still starting, or ending
		}
		c, err := dial(ctx, dir)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		clients = append(clients, c)
	}
	return clients, errs
}

// Find connects to the running VM called name: its name, or its launcher's process number.
func Find(ctx context.Context, root, name string) (*Client, error) {
	clients, errs := All(ctx, root)
	var found *Client
	var names []string
	matches := 0
	for _, c := range clients {
		names = append(names, fmt.Sprintf("%s (%d)", c.Description.GetName(), c.Description.GetPid()))
		if c.Description.GetName() == name || fmt.Sprint(c.Description.GetPid()) == name {
			matches++
			if found == nil {
				found = c
				continue
			}
		}
		errs = append(errs, c.Close())
	}
	switch {
	case matches == 1:
		return found, nil
	case matches > 1:
		return nil, errors.Join(fmt.Errorf("%d running VMs are called %s: name one by its process number: %s", matches, name, strings.Join(names, ", ")), found.Close())
	case len(names) > 0:
		return nil, errors.Join(fmt.Errorf("%w: %s; running are %s", ErrNoVM, name, strings.Join(names, ", ")), errors.Join(errs...))
	}
	return nil, errors.Join(fmt.Errorf("%w: %s; none is running", ErrNoVM, name), errors.Join(errs...))
}
