// SPDX-License-Identifier: Apache-2.0

// Package kube asks the kubelet and the API server what the agent wants to know.
package kube

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"flexai.io/xpu/cluster/agent"
	"flexai.io/xpu/cluster/checkpoint"
)

const (
	checkpointFile = "kubelet_internal_checkpoint"
	listLimit      = 10 * time.Second
	// maxList is what a node's answer may weigh: 110 pods of 200 ids each need well under 2 MiB.
	maxList = 16 << 20
)

// Kubelet reads the checkpoint and PodResources.
type Kubelet struct {
	checkpoint checkpoint.Reader
	resource   string
	client     podresources.PodResourcesListerClient

	mutex   sync.Mutex
	flights []*flight
}

// flight is one List call and those who wait for it.
type flight struct {
	started bool
	done    chan struct{}
	result  []agent.Holding
	err     error
}

// NewKubelet uses the kubelet of a device-plugin directory; resource is the one whose ids count.
func NewKubelet(directory, podResourcesSocket, resource string) (*Kubelet, error) {
	connection, err := grpc.NewClient("unix:"+podResourcesSocket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxList)))
	if err != nil {
		return nil, err
	}
	return &Kubelet{checkpoint: checkpoint.NewReader(filepath.Join(directory, checkpointFile)), resource: resource,
		client: podresources.NewPodResourcesListerClient(connection)}, nil
}

// Checkpoint reads the kubelet's record.
func (k *Kubelet) Checkpoint() ([]checkpoint.Entry, error) { return k.checkpoint.Read() }

// Holdings lists who PodResources shows. The kubelet refuses more than a few calls at once, so
// callers share answers; nobody gets one that was asked for before he asked.
func (k *Kubelet) Holdings(ctx context.Context) ([]agent.Holding, error) {
	f := k.board()
	select {
	case <-f.done:
		return f.result, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// board joins the call that hasn't started yet, or books one behind the call in the air.
func (k *Kubelet) board() *flight {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	if last := len(k.flights) - 1; last >= 0 && !k.flights[last].started {
		return k.flights[last]
	}
	f := &flight{done: make(chan struct{})}
	k.flights = append(k.flights, f)
	if len(k.flights) == 1 {
		k.depart(f)
	}
	return f
}

// depart is called with the mutex held.
func (k *Kubelet) depart(f *flight) {
	f.started = true
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), listLimit)
		defer cancel()
		f.result, f.err = k.list(ctx)
		close(f.done)
		k.mutex.Lock()
		defer k.mutex.Unlock()
		k.flights = k.flights[1:]
		if len(k.flights) > 0 {
			k.depart(k.flights[0])
		}
	}()
}

func (k *Kubelet) list(ctx context.Context) ([]agent.Holding, error) {
	response, err := k.client.List(ctx, &podresources.ListPodResourcesRequest{})
	if err != nil {
		return nil, err
	}
	var holdings []agent.Holding
	for _, pod := range response.PodResources {
		for _, container := range pod.Containers {
			if ids := idsOf(container, k.resource); len(ids) > 0 {
				holdings = append(holdings, agent.Holding{
					Namespace: pod.Namespace, Pod: pod.Name, Container: container.Name, IDs: ids})
			}
		}
	}
	return holdings, nil
}

func idsOf(container *podresources.ContainerResources, resource string) []string {
	var ids []string
	for _, devices := range container.Devices {
		if devices.ResourceName == resource {
			ids = append(ids, devices.DeviceIds...)
		}
	}
	return ids
}
