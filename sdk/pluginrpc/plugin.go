package pluginrpc

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pluginv1 "github.com/virtplug/virtplug/sdk/proto/v1"
)

const (
	// CookieKey and CookieValue are the environment variable by which a plugin knows that a launcher started it. No secret.
	CookieKey = "VIRTPLUG_PLUGIN"
	// CookieValue is its value.
	CookieValue = "8f1d2c5e-virtio-device"

	// PluginName is the one service of a plugin, for go-plugin's Dispense.
	PluginName = "device"

	// SocketFD is the descriptor number at which a plugin inherits its end of the descriptor socket.
	SocketFD = 3
)

// Handshake is go-plugin's handshake for APIVersion.
func Handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{ProtocolVersion: APIVersion, MagicCookieKey: CookieKey, MagicCookieValue: CookieValue}
}

// LauncherPlugins is what goes into plugin.ClientConfig.Plugins: Dispense(PluginName) then returns a *Client that uses s.
func LauncherPlugins(s *Socket) plugin.PluginSet {
	return plugin.PluginSet{PluginName: &glue{socket: s}}
}

// DialOptions go into plugin.ClientConfig.GRPCDialOptions: the size limits also for go-plugin's own services.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithDefaultCallOptions(
		grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes))}
}

// DevicePlugins is what goes into plugin.ServeConfig.Plugins.
func DevicePlugins(s *Server) plugin.PluginSet {
	return plugin.PluginSet{PluginName: &glue{server: s}}
}

// ServerOptions are those of a plugin's gRPC server: size limits, and a panic in a handler becomes INTERNAL with the stack in
// the log.
func ServerOptions(log hclog.Logger) []grpc.ServerOption {
	recovered := func(method string, err *error) {
		if p := recover(); p != nil {
			log.Error("panic in the device", "rpc", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			*err = status.Errorf(codes.Internal, "the device panicked: %v (its log has the stack)", p)
		}
	}
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessageBytes), grpc.MaxSendMsgSize(MaxMessageBytes),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (resp any, err error) {
			defer recovered(info.FullMethod, &err)
			return h(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
			defer recovered(info.FullMethod, &err)
			return h(srv, ss)
		}),
	}
}

// glue is the go-plugin plugin: server in the plugin's process, socket in the launcher's.
type glue struct {
	plugin.NetRPCUnsupportedPlugin
	server *Server
	socket *Socket
}

var _ plugin.GRPCPlugin = (*glue)(nil)

// GRPCServer registers the service.
func (g *glue) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	if g.server == nil {
		return errors.New("this is the launcher's half")
	}
	pluginv1.RegisterDeviceServer(s, g.server)
	return nil
}

// GRPCClient makes the *Client.
func (g *glue) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	if g.socket == nil {
		return nil, errors.New("no descriptor socket: use LauncherPlugins")
	}
	return NewClient(conn, g.socket), nil
}
