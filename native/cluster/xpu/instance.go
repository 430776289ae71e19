// SPDX-License-Identifier: Apache-2.0

package xpu

import "strings"

// Instance is what a card that is a MIG instance has beyond a card's own. Its compute and memory are its alone, so
// it is given out like a card, whole or sliced, and a percent of compute is a percent of the instance's.
type Instance struct {
	Parent string `json:"parent"` // UUID of the physical card
	// GPU and Compute are the ids of its GPU instance and compute instance on the parent.
	GPU     int `json:"gpu_instance"`
	Compute int `json:"compute_instance"`
	// Profile is its size as NVIDIA names it: 1g.5gb.
	Profile string `json:"profile"`
	// Capabilities are the numbers of the device nodes /dev/nvidia-caps/nvidia-cap<number> that open it: its
	// GPU instance's and its compute instance's.
	Capabilities []int `json:"capabilities"`
}

// instanceIndexes leaves room for the instances of each card: of card 0 they are 100, 101, …, of card 1 200, ….
const instanceIndexes = 100

// InstanceIndex is the index of the instance at a place among those of a card: unlike any card's, and the same
// whatever other cards do.
func InstanceIndex(card, place int) int { return (card+1)*instanceIndexes + place }

// short of A100 is A100-MIG-1g.5gb; "+", which no resource's name may hold, becomes ".", as NVIDIA's plugin has it.
func (i Instance) short(parent string) string {
	return parent + "-MIG-" + strings.ReplaceAll(i.Profile, "+", ".")
}
