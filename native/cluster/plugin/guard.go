// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// What one request may hold. A node of 16 cards with 256 ids each stays within it, and so does every
// pod: what is more comes from no kubelet.
const (
	maxIDs        = 16 * 256
	maxContainers = 256
	maxIDBytes    = 128
	// maxRequest is far above a request of maxIDs ids and far below what memory a flood could take.
	maxRequest = 1 << 20
)

// guarded are a server's options: every call of a resource is checked, timed and, at level debug, told.
func guarded(resource Resource, log *slog.Logger) []grpc.ServerOption {
	known := make(map[string]bool, len(resource.IDs))
	for _, id := range resource.IDs {
		known[id] = true
	}
	check := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if err := wellFormed(request, known); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return handler(ctx, request)
	}
	return []grpc.ServerOption{grpc.MaxRecvMsgSize(maxRequest), grpc.ChainUnaryInterceptor(timed(resource.Name, log), check)}
}

// timed writes how long each call took, refused ones too. `make bench-allocate` reads these lines.
func timed(resource string, log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if !log.Enabled(ctx, slog.LevelDebug) {
			return handler(ctx, request)
		}
		began := time.Now()
		response, err := handler(ctx, request)
		took := time.Since(began)
		log.LogAttrs(ctx, slog.LevelDebug, "call", slog.String("method", path.Base(info.FullMethod)),
			slog.String("resource", resource), slog.Int("ids", idsOf(request)), slog.Int64("ns", took.Nanoseconds()),
			slog.String("code", status.Code(err).String()))
		return response, err
	}
}

func idsOf(request any) int {
	count := 0
	switch r := request.(type) {
	case *pluginapi.AllocateRequest:
		for _, container := range r.ContainerRequests {
			count += len(container.GetDevicesIDs())
		}
	case *pluginapi.PreStartContainerRequest:
		count = len(r.DevicesIDs)
	}
	return count
}

// wellFormed refuses what no kubelet sends. Ids that nobody was offered are refused where they are dealt
// out; PreStartContainer may name those of a card that has left, and there the kubelet's own record
// decides whose they are.
func wellFormed(request any, known map[string]bool) error {
	switch r := request.(type) {
	case *pluginapi.AllocateRequest:
		if len(r.ContainerRequests) > maxContainers {
			return fmt.Errorf("%d containers in one request; at most %d are allowed", len(r.ContainerRequests), maxContainers)
		}
		var all []string // one id for two containers is as wrong as twice for one
		for _, container := range r.ContainerRequests {
			all = append(all, container.GetDevicesIDs()...)
		}
		return wellFormedIDs(all, known)
	case *pluginapi.PreStartContainerRequest:
		return wellFormedIDs(r.DevicesIDs, nil)
	case *pluginapi.PreferredAllocationRequest:
		if len(r.ContainerRequests) > maxContainers {
			return fmt.Errorf("%d containers in one request; at most %d are allowed", len(r.ContainerRequests), maxContainers)
		}
		for _, container := range r.ContainerRequests {
			if err := preferable(container, known); err != nil {
				return err
			}
		}
	}
	return nil
}

func preferable(container *pluginapi.ContainerPreferredAllocationRequest, known map[string]bool) error {
	if err := wellFormedIDs(container.GetAvailableDeviceIDs(), known); err != nil {
		return err
	}
	if err := wellFormedIDs(container.GetMustIncludeDeviceIDs(), known); err != nil {
		return err
	}
	if size := container.GetAllocationSize(); size < 0 || int(size) > len(container.GetAvailableDeviceIDs()) {
		return fmt.Errorf("allocation size %d is not 0 to %d, the number of available ids", size, len(container.GetAvailableDeviceIDs()))
	}
	return nil
}

// wellFormedIDs takes any ids of the right form where known is nil.
func wellFormedIDs(ids []string, known map[string]bool) error {
	if len(ids) > maxIDs {
		return fmt.Errorf("%d ids in one request; at most %d are allowed", len(ids), maxIDs)
	}
	seen := make(map[string]bool, len(ids))
	for _, id := range ids {
		switch {
		case !printable(id):
			return fmt.Errorf("id %.40q is not 1 to %d printable ASCII characters", id, maxIDBytes)
		case seen[id]:
			return fmt.Errorf("id %s stands there twice", id)
		case known != nil && !known[id]:
			return fmt.Errorf("id %s was never offered", id)
		}
		seen[id] = true
	}
	return nil
}

func printable(id string) bool {
	if id == "" || len(id) > maxIDBytes {
		return false
	}
	return !strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}
