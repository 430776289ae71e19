// SPDX-License-Identifier: Apache-2.0

package place

import "fmt"

// Reason says why something is refused; empty means it is not. Its text depends on the ask only,
// never on the node, because Volcano counts nodes by equal texts.
type Reason string

// ContainerAsk is what one container wants: Count virtual cards of one share each, on Count
// different cards.
type ContainerAsk struct {
	Name  string
	Count int
	Share Share
}

// Ask lists a pod's containers in their order in the pod; those without a slice have Count 0.
type Ask []ContainerAsk

// Empty says that no container wants a slice.
func (a Ask) Empty() bool {
	for _, container := range a {
		if container.Count > 0 {
			return false
		}
	}
	return true
}

// Totals are a container's three quantities as the pod's resources state them: totals over its
// virtual cards.
type Totals struct {
	Number    int64
	Cores     int64
	MemoryGiB int64
}

// FromTotals turns a container's totals into the share of one virtual card. A number alone is
// that many whole cards; cores alone take the whole memory; memory alone sets no compute limit.
//
// Several virtual cards with a share each are refused rather than divided: totals alone don't tell
// upstream's meaning (numbers per virtual card) from ours. The device plugin refuses them at
// PreStart for the same reason (native/cluster/xpu, Settle), so a pod let through here would be
// bound to a node and never start.
func FromTotals(name string, t Totals) (ContainerAsk, Reason) {
	ask := ContainerAsk{Name: name, Count: int(t.Number)}
	shared := t.Cores > 0 || t.MemoryGiB > 0
	switch {
	case t.Number <= 0 && shared:
		return ask, Reason(fmt.Sprintf(
			"container %s asks for vgpu-cores %d and vgpu-memory-1Gi %d without vgpu-number; "+
				"add vgpu-number: 1", name, t.Cores, t.MemoryGiB))
	case t.Number <= 0:
		return ContainerAsk{Name: name}, ""
	case !shared:
		ask.Share = Share{Cores: FullCores}
		return ask, ""
	case t.Number > 1:
		return ask, Reason(fmt.Sprintf(
			"container %s asks for vgpu-number %d together with vgpu-cores %d and vgpu-memory-1Gi %d; "+
				"several slices in one container are not supported: ask for one (vgpu-number: 1), "+
				"or for whole cards by vgpu-number alone", name, t.Number, t.Cores, t.MemoryGiB))
	case t.Cores > FullCores:
		return ask, Reason(fmt.Sprintf(
			"container %s asks for vgpu-cores %d on one card; ask for at most %d",
			name, t.Cores, FullCores))
	}
	ask.Share = Share{Cores: int(t.Cores), MemMiB: t.MemoryGiB * 1024}
	return ask, ""
}
