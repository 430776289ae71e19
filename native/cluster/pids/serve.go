// SPDX-License-Identifier: Apache-2.0

package pids

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"flexai.io/xpu/cluster/pids/api"
)

// Limits of one connection: a request is one path, a question waits some tenths of a second.
const (
	largestMessage = 8 << 10
	largestHeaders = 8 << 10
	streamsEach    = 100
	handshakeLimit = 5 * time.Second
	idleLimit      = time.Minute
	goodbye        = 2 * time.Second
)

// Sockets are where the service listens.
type Sockets struct {
	// Public is a directory that tenants see as their /var/lib/xpu: a directory, so that they find the socket
	// of a plugin that was started anew.
	Public string
	// Link leads to the socket in Public, on the host.
	Link string
	// Guarded is the exporter's directory, which Group may enter and no tenant sees: whoever comes that way may
	// ask about all slices.
	Guarded string
	Group   int
}

// SocketName is that of the sockets in their directories.
const SocketName = "pids.sock"

// Serve answers on both sockets until ctx ends.
func (s *Service) Serve(ctx context.Context, sockets Sockets) error {
	public, err := listen(sockets.Public, 0o755, 0o666, -1)
	if err != nil {
		return err
	}
	defer public.Close()
	guarded, err := listen(sockets.Guarded, 0o750, 0o660, sockets.Group)
	if err != nil {
		return err
	}
	defer guarded.Close()
	if err := link(filepath.Join(sockets.Public, SocketName), sockets.Link); err != nil {
		return err
	}
	failed := make(chan error, 2)
	open, watched := s.server(newPeers(s.deps.Procfs, false)), s.server(newPeers(s.deps.Procfs, true))
	go func() { failed <- open.Serve(public) }()
	go func() { failed <- watched.Serve(guarded) }()
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	for _, server := range []*grpc.Server{open, watched} {
		stopping := time.AfterFunc(goodbye, server.Stop)
		server.GracefulStop()
		stopping.Stop()
	}
	return err
}

func (s *Service) server(who *peers) *grpc.Server {
	server := grpc.NewServer(grpc.Creds(who), grpc.MaxRecvMsgSize(largestMessage), grpc.MaxHeaderListSize(largestHeaders),
		grpc.MaxConcurrentStreams(streamsEach), grpc.ConnectionTimeout(handshakeLimit),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleLimit}), grpc.UnaryInterceptor(s.guard))
	api.RegisterPidsServiceServer(server, s)
	return server
}

// guard: a mistake of ours on this socket must not end the program that gives out slices.
func (s *Service) guard(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (answer any, err error) {
	defer func() {
		if failure := recover(); failure != nil {
			s.deps.Log.Error("PidsService failed", "method", info.FullMethod, "failure", failure, "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "failed; gpu-device-plugin's log says why")
		}
	}()
	return next(ctx, request)
}

// listen takes the place of a former life's socket. It isn't removed at the end: by then it may be a
// successor's.
func listen(directory string, mode, socketMode os.FileMode, group int) (net.Listener, error) {
	if err := os.MkdirAll(directory, mode); err != nil {
		return nil, err
	}
	path := filepath.Join(directory, SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	// MkdirAll and bind went by our umask.
	err = errors.Join(os.Chown(directory, -1, group), os.Chmod(directory, mode), os.Chown(path, -1, group),
		os.Chmod(path, socketMode))
	if err != nil {
		listener.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return listener, nil
}

// link makes path lead to target, by one rename.
func link(target, path string) error {
	if there, err := os.Readlink(path); err == nil && there == target {
		return nil
	}
	scratch := path + ".new"
	if err := os.Remove(scratch); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, scratch); err != nil {
		return err
	}
	return os.Rename(scratch, path)
}
