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
	cardsAnnotation    = "huawei.com/node-vgpu-register"
	nodeAnnotation     = "huawei.com/vgpu-node"
	grantsAnnotation   = "huawei.com/vgpu-ids-new"
	bindTimeAnnotation = "huawei.com/bind-time"
)

// askOf reads what a pod wants of cards.
func askOf(pod *v1.Pod) (place.Ask, place.Reason) {
	for i := range pod.Spec.InitContainers {
		container := &pod.Spec.InitContainers[i]
		if totals := totalsOf(container); totals != (place.Totals{}) {
			return nil, place.Reason("init container " + container.Name +
				" asks for a vGPU, which is not supported; move the request to a container")
		}
	}
	ask := make(place.Ask, len(pod.Spec.Containers))
	for i := range pod.Spec.Containers {
		container := &pod.Spec.Containers[i]
		one, reason := place.FromTotals(container.Name, totalsOf(container))
		if reason != "" {
			return nil, reason
		}
		ask[i] = one
	}
	return ask, ""
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
