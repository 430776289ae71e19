// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"flexai.io/xpu/cluster/agent"
)

// NodePods are the pods of one node as a watch keeps them: a container's start then asks nobody over the
// network, and goes on while the API server is away. What it lacks may be there all the same; then the
// API server is asked.
type NodePods struct {
	pods      cache.Store
	reflector *cache.Reflector
}

// NewNodePods prepares the watch; Run keeps it.
func NewNodePods(config *rest.Config, node string) (*NodePods, error) {
	own, err := settings(config)
	if err != nil {
		return nil, err
	}
	own.Timeout = 0 // a watch lasts
	client, err := rest.RESTClientFor(own)
	if err != nil {
		return nil, err
	}
	pods := cache.NewStore(func(object any) (string, error) { return string(object.(*corev1.Pod).UID), nil })
	of := cache.NewListWatchFromClient(client, "pods", "", fields.OneTermEqualSelector("spec.nodeName", node))
	return &NodePods{pods: pods, reflector: cache.NewReflector(of, &corev1.Pod{}, pods, 0)}, nil
}

// Run watches until ctx ends, with the library's back-off while the API server is away.
func (p *NodePods) Run(ctx context.Context) { p.reflector.Run(ctx.Done()) }

// Known is the pod with this UID as it was last seen.
func (p *NodePods) Known(uid string) (agent.Pod, bool) {
	pod, there, err := p.pods.GetByKey(uid)
	if err != nil || !there {
		return agent.Pod{}, false
	}
	return podOf(pod.(*corev1.Pod)), true
}
