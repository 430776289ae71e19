// SPDX-License-Identifier: Apache-2.0

package bridge

import (
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"

	"flexai.io/xpu/volcano/place"
)

// Resources a pod asks for; totals over a container's virtual cards.
const (
	numberResource = v1.ResourceName("huawei.com/vgpu-number")
	coresResource  = v1.ResourceName("huawei.com/vgpu-cores")
	memoryResource = v1.ResourceName("huawei.com/vgpu-memory-1Gi")
)

// Annotations; formats in docs/interfaces.md section 7. Upstream's bind-phase and
// devices-to-allocate are left out: they serve its guess of the pod at Allocate, which the device
// plugin's late binding does not make.
const (
	cardsAnnotation     = "huawei.com/node-vgpu-register"
	handshakeAnnotation = "huawei.com/node-vgpu-handshake"
	topologyAnnotation  = "huawei.com/node-gpu-topology"
	boundAnnotation     = "flexai.io/node-vgpu-slices"

	shapeAnnotation     = "flexai.io/vgpu-shape"
	classAnnotation     = "flexai.io/class"
	modelsAnnotation    = "flexai.io/vgpu-type"
	bandwidthAnnotation = "flexai.io/intra-bandwidth"
	policyAnnotation    = "flexai.io/policy"

	nodeAnnotation     = "huawei.com/vgpu-node"
	grantsAnnotation   = "huawei.com/vgpu-ids-new"
	bindTimeAnnotation = "huawei.com/bind-time"
)

// askOf reads what a pod wants of cards. groupPolicy is what its PodGroup says of the policy.
func askOf(pod *v1.Pod, groupPolicy string, siteDefault place.Class) (place.Ask, place.Reason) {
	policy := pod.Annotations[policyAnnotation]
	if policy == "" {
		policy = groupPolicy
	}
	return place.NewAsk(containersOf(pod), place.Wishes{
		Shapes:    pod.Annotations[shapeAnnotation],
		Class:     pod.Annotations[classAnnotation],
		Models:    pod.Annotations[modelsAnnotation],
		Bandwidth: pod.Annotations[bandwidthAnnotation],
		Policy:    policy,
	}, siteDefault)
}

// containersOf lists the pod's containers, and its init containers behind them when one of those
// asks for slices: so a container keeps its place in the grants annotation.
func containersOf(pod *v1.Pod) []place.Container {
	containers := make([]place.Container, 0, len(pod.Spec.Containers)+len(pod.Spec.InitContainers))
	for i := range pod.Spec.Containers {
		container := &pod.Spec.Containers[i]
		containers = append(containers, place.Container{Name: container.Name, Totals: totalsOf(container)})
	}
	asks := false
	for i := range pod.Spec.InitContainers {
		container := &pod.Spec.InitContainers[i]
		lasts := container.RestartPolicy != nil && *container.RestartPolicy == v1.ContainerRestartPolicyAlways
		one := place.Container{Name: container.Name, Totals: totalsOf(container), Passing: !lasts, Lasting: lasts}
		asks = asks || one.Totals != place.Totals{}
		containers = append(containers, one)
	}
	if !asks {
		return containers[:len(pod.Spec.Containers)]
	}
	return containers
}

// totalsOf reads limits: for extended resources Kubernetes demands limits and makes requests equal.
func totalsOf(container *v1.Container) place.Totals {
	value := func(name v1.ResourceName) int64 {
		quantity := container.Resources.Limits[name]
		return quantity.Value()
	}
	return place.Totals{
		Number: value(numberResource), Cores: value(coresResource), MemoryGiB: value(memoryResource),
	}
}

// annotate puts the placement on the pod, which Volcano's binder sends with the bind. It replaces
// the map instead of writing into it: the pod is shared with the informer's cache, and other
// goroutines may be reading the map. It returns how to undo exactly this.
func annotate(pod *v1.Pod, node string, placement place.Placement, now time.Time) (undo func()) {
	written := map[string]string{
		nodeAnnotation:     node,
		grantsAnnotation:   place.EncodePlacement(placement),
		bindTimeAnnotation: strconv.FormatInt(now.UnixNano(), 10),
	}
	before := pod.Annotations
	pod.Annotations = overlay(before, written, nil)
	return func() { pod.Annotations = overlay(pod.Annotations, before, written) }
}

// overlay copies base without the keys of drop, then sets those keys of extra that are new or
// were dropped.
func overlay(base, extra, drop map[string]string) map[string]string {
	merged := make(map[string]string, len(base)+len(extra))
	for key, value := range base {
		if _, dropped := drop[key]; !dropped {
			merged[key] = value
		}
	}
	for key, value := range extra {
		if _, dropped := drop[key]; dropped || drop == nil {
			merged[key] = value
		}
	}
	return merged
}
