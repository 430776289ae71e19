// SPDX-License-Identifier: Apache-2.0

// Package plugin speaks the kubelet's device plugin protocol for resources whose ids are opaque
// tokens: what a set of tokens stands for is settled when the container starts.
package plugin

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"flexai.io/xpu/cluster/cdi"
	"flexai.io/xpu/cluster/xpu"
)

// Strategy is how an Allocate answer names the slice's CDI entry.
type Strategy string

const (
	// Mount names it by a volume mount that NVIDIA's runtime in CDI mode reads; an environment
	// variable would be overridden by the pod or its image.
	Mount Strategy = "mount"
	// Field names it in the kubelet's own field, for runtimes that take CDI names from it.
	Field Strategy = "field"
)

// mountRoot is where NVIDIA's runtime looks for devices requested by mounts.
const mountRoot = "/var/run/nvidia-container-devices/cdi"

// ParseStrategy reads a flag's value.
func ParseStrategy(text string) (Strategy, error) {
	switch s := Strategy(text); s {
	case Mount, Field:
		return s, nil
	}
	return "", fmt.Errorf("CDI strategy %q is neither %s nor %s", text, Mount, Field)
}

// Resource is one resource of the node.
type Resource struct {
	Name   string
	Socket string
	IDs    []string
	// Allocate answers for one container's ids; its answer must not depend on anything else.
	Allocate func(ids []string) *pluginapi.ContainerAllocateResponse
	// Prepare runs before each start of a container; nil when the resource needs none.
	Prepare func(ctx context.Context, ids []string) error
	// Withdrawn are ids that are not to be given out now; nil when there never are any.
	Withdrawn *Withdrawn
	// Prefer chooses size of the available ids; nil leaves it to the kubelet.
	Prefer func(available, must []string, size int) []string
}

// devices are the ids as the kubelet wants to hear of them. They name no NUMA node: which card they stand
// for is settled later.
func (r Resource) devices(withdrawn map[string]bool) []*pluginapi.Device {
	devices := make([]*pluginapi.Device, 0, len(r.IDs))
	for _, id := range r.IDs {
		health := pluginapi.Healthy
		if withdrawn[id] {
			health = pluginapi.Unhealthy
		}
		devices = append(devices, &pluginapi.Device{ID: id, Health: health})
	}
	return devices
}

// Tokens are a resource's ids: count for each card. They carry the card's UUID only because ids
// must be unique and stable; a token of one card may be settled on another.
func Tokens(cards []xpu.Card, kind string, count func(xpu.Card) int) []string {
	var ids []string
	for _, card := range cards {
		for i := range count(card) {
			ids = append(ids, fmt.Sprintf("%s-%s%d", card.UUID, kind, i))
		}
	}
	return ids
}

// Indirection answers with the name of the CDI entry that Prepare will have written; dealt hears of the ids,
// and must not wait.
func Indirection(strategy Strategy, dealt func(ids []string)) func([]string) *pluginapi.ContainerAllocateResponse {
	return func(ids []string) *pluginapi.ContainerAllocateResponse {
		dealt(ids)
		key := xpu.Key(ids)
		if strategy == Field {
			return &pluginapi.ContainerAllocateResponse{
				CDIDevices: []*pluginapi.CDIDevice{{Name: cdi.Kind + "=" + key}},
			}
		}
		return &pluginapi.ContainerAllocateResponse{Mounts: []*pluginapi.Mount{{
			HostPath: "/dev/null", ContainerPath: mountRoot + "/" + cdi.Kind + "/" + key, ReadOnly: true,
		}}}
	}
}

// Empty answers for a resource that only counts.
func Empty([]string) *pluginapi.ContainerAllocateResponse {
	return &pluginapi.ContainerAllocateResponse{}
}

// service is the gRPC side of one resource.
type service struct {
	pluginapi.UnimplementedDevicePluginServer
	resource Resource
	done     <-chan struct{}
}

func (s *service) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return s.options(), nil
}

func (s *service) options() *pluginapi.DevicePluginOptions {
	return &pluginapi.DevicePluginOptions{PreStartRequired: s.resource.Prepare != nil,
		GetPreferredAllocationAvailable: s.resource.Prefer != nil}
}

// ListAndWatch tells the ids, and again whenever other ones are withdrawn.
func (s *service) ListAndWatch(_ *pluginapi.Empty, stream pluginapi.DevicePlugin_ListAndWatchServer) error {
	for {
		withdrawn, changed := s.resource.Withdrawn.now()
		if err := stream.Send(&pluginapi.ListAndWatchResponse{Devices: s.resource.devices(withdrawn)}); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-s.done:
			return nil
		case <-changed:
		}
	}
}

func (s *service) GetPreferredAllocation(_ context.Context, request *pluginapi.PreferredAllocationRequest) (*pluginapi.PreferredAllocationResponse, error) {
	if s.resource.Prefer == nil {
		return nil, status.Error(codes.Unimplemented, s.resource.Name+" prefers no ids")
	}
	response := &pluginapi.PreferredAllocationResponse{}
	for _, container := range request.ContainerRequests {
		ids := s.resource.Prefer(container.AvailableDeviceIDs, container.MustIncludeDeviceIDs, int(container.AllocationSize))
		response.ContainerResponses = append(response.ContainerResponses,
			&pluginapi.ContainerPreferredAllocationResponse{DeviceIDs: ids})
	}
	return response, nil
}

func (s *service) Allocate(_ context.Context, request *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	response := &pluginapi.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		response.ContainerResponses = append(response.ContainerResponses, s.resource.Allocate(container.DevicesIDs))
	}
	return response, nil
}

func (s *service) PreStartContainer(ctx context.Context, request *pluginapi.PreStartContainerRequest) (*pluginapi.PreStartContainerResponse, error) {
	if err := s.resource.Prepare(ctx, request.DevicesIDs); err != nil {
		return nil, refusal(err)
	}
	return &pluginapi.PreStartContainerResponse{}, nil
}

// refusal gives an error the code that pod events then show before its text.
func refusal(err error) error {
	var noFit *xpu.NoFit
	if errors.As(err, &noFit) {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return status.Error(codes.FailedPrecondition, err.Error())
}
