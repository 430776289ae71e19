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
func FromTotals(name string, t Totals) (ContainerAsk, Reason) {
	ask := ContainerAsk{Name: name, Count: int(t.Number)}
	if t.Number <= 0 {
		if t.Cores > 0 || t.MemoryGiB > 0 {
			return ask, Reason(fmt.Sprintf(
				"container %s asks for vgpu-cores or vgpu-memory-1Gi without vgpu-number; add vgpu-number",
				name))
		}
		return ask, ""
	}
	if t.Cores == 0 && t.MemoryGiB == 0 {
		ask.Share = Share{Cores: FullCores}
		return ask, ""
	}
	if t.Cores%t.Number != 0 || t.MemoryGiB%t.Number != 0 || t.Cores > FullCores*t.Number {
		return ask, Reason(fmt.Sprintf(
			"container %s asks for %d cores and %d GiB over %d vGPUs; both must divide evenly, "+
				"with at most %d cores each", name, t.Cores, t.MemoryGiB, t.Number, FullCores))
	}
	ask.Share = Share{Cores: int(t.Cores / t.Number), MemMiB: t.MemoryGiB / t.Number * 1024}
	return ask, ""
}
