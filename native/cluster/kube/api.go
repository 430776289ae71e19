// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"flexai.io/xpu/cluster/agent"
	"flexai.io/xpu/cluster/xpu"
)

// Annotations of the contract, docs/interfaces.md section 7.
const (
	preferenceAnnotation = "huawei.com/vgpu-ids-new"
	registerAnnotation   = "huawei.com/node-vgpu-register"
	handshakeAnnotation  = "huawei.com/node-vgpu-handshake"
)

// callLimit bounds one call: a container's start waits for it.
const callLimit = 5 * time.Second

// API is the API server, as far as this program needs it: one pod, one node's annotations. It does
// without the clientset of every API group, which would triple the program.
type API struct {
	client rest.Interface
}

// NewAPI connects by the pod's service account, or by what config says.
func NewAPI(config *rest.Config) (*API, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	own := rest.CopyConfig(config)
	own.APIPath = "/api"
	own.GroupVersion = &corev1.SchemeGroupVersion
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	own.Timeout = callLimit
	client, err := rest.RESTClientFor(own)
	if err != nil {
		return nil, err
	}
	return &API{client: client}, nil
}

// Pod reads one pod.
func (a *API) Pod(ctx context.Context, namespace, name string) (agent.Pod, error) {
	var pod corev1.Pod
	err := a.client.Get().Namespace(namespace).Resource("pods").Name(name).Do(ctx).Into(&pod)
	if apierrors.IsNotFound(err) {
		return agent.Pod{}, agent.ErrNoPod
	}
	if err != nil {
		return agent.Pod{}, err
	}
	return podOf(&pod), nil
}

func podOf(pod *corev1.Pod) agent.Pod {
	found := agent.Pod{
		UID:        string(pod.UID),
		Finished:   pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
		Preference: pod.Annotations[preferenceAnnotation],
	}
	for _, container := range pod.Spec.Containers {
		found.Containers = append(found.Containers, container.Name)
	}
	return found
}

// Report tells schedulers which cards the node has, and that this program is alive.
func (a *API) Report(ctx context.Context, node string, cards []xpu.Card, now time.Time) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{
		registerAnnotation: xpu.RegisterValue(cards),
		// UTC, whatever zone the container has: upstream's local time can't be read elsewhere.
		handshakeAnnotation: "Reported_" + now.UTC().Format("2006.01.02 15:04:05"),
	}}})
	if err != nil {
		return err
	}
	return a.client.Patch(types.MergePatchType).Resource("nodes").Name(node).Body(patch).Do(ctx).Error()
}
