// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	shapeAnnotation      = "flexai.io/vgpu-shape"
	classAnnotation      = "flexai.io/class"
	modelsAnnotation     = "flexai.io/vgpu-type"
	bandwidthAnnotation  = "flexai.io/intra-bandwidth"
	registerAnnotation   = "huawei.com/node-vgpu-register"
	handshakeAnnotation  = "huawei.com/node-vgpu-handshake"
	topologyAnnotation   = "huawei.com/node-gpu-topology"
	usedAnnotation       = "huawei.com/node-vgpu-used"
	slicesAnnotation     = "flexai.io/node-vgpu-slices"
)

// maxBound is how long the list of slices may be, about 800 of them: an object's annotations are refused
// as a whole above 256 KiB, and then the node would look dead. Readers have the sums of the cards instead.
const maxBound = 128 << 10

// callLimit bounds one call: a container's start waits for it.
const callLimit = 5 * time.Second

// A node has 110 pods or so, each of which is read once.
const (
	callsPerSecond = 50
	callsAtOnce    = 200
)

// API is the API server, as far as this program needs it: pods one at a time, one node's annotations. It
// does without the clientset of every API group, which would triple the program.
type API struct {
	client rest.Interface
	node   string
}

// NewAPI connects by the pod's service account, or by what config says.
func NewAPI(config *rest.Config, node string) (*API, error) {
	own, err := settings(config)
	if err != nil {
		return nil, err
	}
	own.Timeout = callLimit
	// The library's own 5 calls a second would queue the containers of a busy node's start.
	own.QPS, own.Burst = callsPerSecond, callsAtOnce
	client, err := rest.RESTClientFor(own)
	if err != nil {
		return nil, err
	}
	return &API{client: client, node: node}, nil
}

// settings are those of a client of the core group alone.
func settings(config *rest.Config) (*rest.Config, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	own := rest.CopyConfig(config)
	own.APIPath = "/api"
	own.GroupVersion = &corev1.SchemeGroupVersion
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return own, nil
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
		UID: string(pod.UID), Namespace: pod.Namespace, Name: pod.Name,
		Finished:   pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
		Preference: pod.Annotations[preferenceAnnotation],
		Shapes:     pod.Annotations[shapeAnnotation],
		Class:      pod.Annotations[classAnnotation],
		Models:     pod.Annotations[modelsAnnotation],
		Bandwidth:  pod.Annotations[bandwidthAnnotation],
	}
	for _, container := range pod.Spec.Containers {
		found.Containers = append(found.Containers, container.Name)
	}
	found.Limits = map[string]agent.Limits{}
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		limits := agent.Limits{}
		for resource, quantity := range container.Resources.Limits {
			limits[string(resource)] = int(quantity.Value())
		}
		found.Limits[container.Name] = limits
	}
	return found
}

// PodOf finds a pod of this node by its UID. It reads all pods of the node, so it is for the rare ones
// whose name nobody tells: the kubelet shows no init containers.
func (a *API) PodOf(ctx context.Context, uid string) (agent.Pod, error) {
	var pods corev1.PodList
	err := a.client.Get().Resource("pods").Param("fieldSelector", "spec.nodeName="+a.node).Do(ctx).Into(&pods)
	if err != nil {
		return agent.Pod{}, err
	}
	for i := range pods.Items {
		if string(pods.Items[i].UID) == uid {
			return podOf(&pods.Items[i]), nil
		}
	}
	return agent.Pod{}, agent.ErrNoPod
}

// NodeAnnotations are what a node says of its cards, by key.
func NodeAnnotations(cards []xpu.Card, slices []xpu.Slice, now time.Time) map[string]string {
	bound := xpu.SlicesValue(slices)
	if len(bound) > maxBound {
		bound = ""
	}
	return map[string]string{
		registerAnnotation: xpu.RegisterValue(cards),
		topologyAnnotation: xpu.TopologyValue(cards),
		usedAnnotation:     xpu.UsedValue(cards, slices),
		slicesAnnotation:   bound,
		// UTC, whatever zone the container has: upstream's local time can't be read elsewhere.
		handshakeAnnotation: "Reported_" + now.UTC().Format("2006.01.02 15:04:05"),
	}
}

// Annotate writes annotations of this node.
func (a *API) Annotate(ctx context.Context, annotations map[string]string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		return err
	}
	return a.client.Patch(types.MergePatchType).Resource("nodes").Name(a.node).Body(patch).Do(ctx).Error()
}
