// SPDX-License-Identifier: Apache-2.0

// Package place decides which cards of one node serve a pod, keeps the books of what is given out,
// and names the tenants that would have to leave. It knows neither Kubernetes nor Volcano: cards
// and an ask in, a placement or the reason of a refusal out.
package place

import "strings"

// FullCores is the compute of one card in percent.
const FullCores = 100

// Card is one card of a node, as its device plugin describes it.
type Card struct {
	Index   int
	UUID    string
	Type    string
	Slots   int // most tenants at a time
	MemMiB  int64
	Healthy bool
	NUMA    int
}

// typePrefix stands before the model in the register annotation's TYPE.
const typePrefix = "GPU-"

// instancePrefix begins the UUID of a MIG instance.
const instancePrefix = "MIG-"

// serves says whether the card may be one of several of a container: beside a MIG instance a process
// sees no other card, as the device plugin has it (native/cluster/xpu).
func (c *Card) serves(count int) bool {
	return count <= 1 || !strings.HasPrefix(c.UUID, instancePrefix)
}

// isOne says whether the card is of one of the models; none named means that any will do.
func (c *Card) isOne(models []string) bool {
	model := strings.TrimPrefix(c.Type, typePrefix)
	for _, wanted := range models {
		if strings.EqualFold(model, wanted) {
			return true
		}
	}
	return len(models) == 0
}

// Share is what one virtual card gets of its card. Cores 0 reserves no compute; MemMiB 0 is all of
// the card's memory. BestEffort runs only while its neighbours are idle.
type Share struct {
	Cores      int
	MemMiB     int64
	BestEffort bool
}

// memoryOn resolves "all of the card" to the card's size.
func (s Share) memoryOn(c *Card) int64 {
	if s.MemMiB == 0 {
		return c.MemMiB
	}
	return s.MemMiB
}

func (s Share) on(c *Card) usage {
	used := usage{cores: s.Cores, memMiB: s.memoryOn(c), tenants: 1}
	if s.BestEffort {
		used.bestEffort = 1
	}
	return used
}

// Grant is a share on a certain card, as the annotation writes it. Vid is the tenant's number on
// the card.
type Grant struct {
	Index  int
	UUID   string
	MemMiB int64
	Cores  int
	Vid    int
}

// usage is what is taken of one card.
type usage struct {
	cores      int
	memMiB     int64
	tenants    int
	bestEffort int // of the tenants
}

func (u usage) plus(v usage) usage {
	return usage{u.cores + v.cores, u.memMiB + v.memMiB, u.tenants + v.tenants, u.bestEffort + v.bestEffort}
}

func (u usage) minus(v usage) usage {
	return usage{u.cores - v.cores, u.memMiB - v.memMiB, u.tenants - v.tenants, u.bestEffort - v.bestEffort}
}

// atLeast is the larger of both in each quantity.
func (u usage) atLeast(v usage) usage {
	return usage{
		max(u.cores, v.cores), max(u.memMiB, v.memMiB),
		max(u.tenants, v.tenants), max(u.bestEffort, v.bestEffort),
	}
}

func (u usage) covers(v usage) bool { return u.atLeast(v) == u }

// admits says whether a share may join what is taken of a card, as the device plugin has it
// (native/cluster/xpu): where all cores are promised, no share without compute limit may take them. A
// best-effort one may come and stay: it runs while the others are idle. Whole cards are kept whole by
// their memory.
func (c *Card) admits(taken usage, s Share) bool {
	switch {
	case taken.tenants >= c.Slots:
		return false
	case taken.memMiB+s.memoryOn(c) > c.MemMiB:
		return false
	case taken.cores+s.Cores > FullCores:
		return false
	case s.Cores == 0:
		return s.BestEffort || taken.cores < FullCores
	case s.Cores == FullCores:
		return taken.tenants == taken.bestEffort
	}
	return true
}

// holds says whether the card is as large as what is taken of it.
func (c *Card) holds(u usage) bool {
	return u.cores <= FullCores && u.memMiB <= c.MemMiB && u.tenants <= c.Slots
}

// fill is the fuller of compute and memory, 0 to 1.
func (c *Card) fill(u usage) float64 {
	return max(float64(u.cores)/FullCores, ratio(u.memMiB, c.MemMiB))
}

func ratio(part, whole int64) float64 {
	if whole <= 0 {
		return 1
	}
	return float64(part) / float64(whole)
}
