// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	kubeletSocket = "kubelet.sock"
	registerLimit = 10 * time.Second
)

// Serve offers the resources to the kubelet of a device-plugin directory until ctx ends. A kubelet
// that restarts empties the directory; then everything is offered again.
func Serve(ctx context.Context, directory string, resources []Resource, poll time.Duration, log *slog.Logger) error {
	last := ""
	for ctx.Err() == nil {
		err := serveOnce(ctx, directory, resources, poll, log)
		if err != nil && err.Error() != last {
			log.Warn("not registered with the kubelet; trying on", "error", err)
			last = err.Error()
		}
		if err == nil {
			last = ""
		}
		wait(ctx, poll)
	}
	return nil
}

func wait(ctx context.Context, duration time.Duration) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// serveOnce returns when ctx ends, when the kubelet changes, or when a socket could not be offered.
func serveOnce(ctx context.Context, directory string, resources []Resource, poll time.Duration, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	kubelet, err := identify(filepath.Join(directory, kubeletSocket))
	if err != nil {
		return fmt.Errorf("kubelet's registration socket: %w", err)
	}
	for _, resource := range resources {
		stop, err := offer(ctx, directory, resource, log)
		if err != nil {
			return fmt.Errorf("%s: %w", resource.Name, err)
		}
		defer stop()
		log.Info("registered", "resource", resource.Name, "ids", len(resource.IDs))
	}
	for ctx.Err() == nil && standing(directory, kubelet, resources) {
		wait(ctx, poll)
	}
	return nil
}

// identity tells one socket file from another at the same path.
type identity struct {
	info os.FileInfo
}

func identify(path string) (identity, error) {
	info, err := os.Stat(path)
	return identity{info}, err
}

func (i identity) same(other identity) bool {
	// The time too: a file system may give a new file the inode of one just removed.
	return os.SameFile(i.info, other.info) && i.info.ModTime().Equal(other.info.ModTime())
}

func standing(directory string, kubelet identity, resources []Resource) bool {
	now, err := identify(filepath.Join(directory, kubeletSocket))
	if err != nil || !kubelet.same(now) {
		return false
	}
	for _, resource := range resources {
		if _, err := os.Stat(filepath.Join(directory, resource.Socket)); err != nil {
			return false
		}
	}
	return true
}

// offer listens for one resource and registers it.
func offer(ctx context.Context, directory string, resource Resource, log *slog.Logger) (stop func(), err error) {
	path := filepath.Join(directory, resource.Socket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	server := grpc.NewServer(guarded(resource, log)...)
	own := &service{resource: resource, done: ctx.Done()}
	pluginapi.RegisterDevicePluginServer(server, own)
	go server.Serve(listener) //nolint:errcheck // ends with Stop; a broken socket shows in standing()
	if err := register(ctx, directory, resource, own.options()); err != nil {
		server.Stop()
		return nil, err
	}
	return server.Stop, nil
}

func register(ctx context.Context, directory string, resource Resource, options *pluginapi.DevicePluginOptions) error {
	ctx, cancel := context.WithTimeout(ctx, registerLimit)
	defer cancel()
	connection, err := grpc.NewClient("unix:"+filepath.Join(directory, kubeletSocket),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	_, err = pluginapi.NewRegistrationClient(connection).Register(ctx, &pluginapi.RegisterRequest{
		Version: pluginapi.Version, Endpoint: resource.Socket, ResourceName: resource.Name, Options: options,
	})
	if err != nil {
		return fmt.Errorf("register with the kubelet: %w", err)
	}
	return nil
}
