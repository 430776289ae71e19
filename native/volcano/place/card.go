// SPDX-License-Identifier: Apache-2.0

// Package place decides which cards of one node serve a pod. It knows neither Kubernetes nor
// Volcano: cards and an ask in, a placement or the reason of a refusal out. Everything works on
// values; only the caller commits.
package place

// FullCores is the compute of one card in percent.
const FullCores = 100

// Card is one card of a node with what is given out of it.
type Card struct {
	Index   int
	UUID    string
	Type    string
	Slots   int // most tenants at a time
	MemMiB  int64
	Healthy bool

	usedCores int
	usedMiB   int64
	tenants   map[int]struct{} // by virtual id, the tenant's number on this card
}

// Share is what one virtual card gets of its card. Cores 0 sets no compute limit; MemMiB 0 is all
// of the card's memory.
type Share struct {
	Cores  int
	MemMiB int64
}

// Grant is a share on a certain card, as the annotation writes it.
type Grant struct {
	Index  int
	UUID   string
	MemMiB int64
	Cores  int
	Vid    int
}

// memoryOn resolves "all of the card" to the card's size.
func (s Share) memoryOn(c *Card) int64 {
	if s.MemMiB == 0 {
		return c.MemMiB
	}
	return s.MemMiB
}

// fits says whether a share may join the tenants a card has. A full compute share and a share
// without compute limit exclude each other in both directions: the second would eat the first.
func (c *Card) fits(s Share) bool {
	switch {
	case !c.Healthy || len(c.tenants) >= c.Slots:
		return false
	case c.usedMiB+s.memoryOn(c) > c.MemMiB:
		return false
	case s.Cores >= FullCores:
		return len(c.tenants) == 0
	case s.Cores == 0:
		return c.usedCores < FullCores
	default:
		return c.usedCores+s.Cores <= FullCores
	}
}

// fillWith is the fuller of compute and memory, 0 to 1, after the share joined.
func (c *Card) fillWith(s Share) float64 {
	cores := float64(c.usedCores+s.Cores) / FullCores
	return max(cores, ratio(c.usedMiB+s.memoryOn(c), c.MemMiB))
}

func (c *Card) fill() float64 {
	return max(float64(c.usedCores)/FullCores, ratio(c.usedMiB, c.MemMiB))
}

func ratio(part, whole int64) float64 {
	if whole <= 0 {
		return 1
	}
	return float64(part) / float64(whole)
}

// take gives the share out; the caller has asked fits. The tenant gets the wished virtual id, or
// the next free one.
func (c *Card) take(s Share, vid int) Grant {
	for _, taken := c.tenants[vid]; taken; _, taken = c.tenants[vid] {
		vid++
	}
	grant := Grant{
		Index: c.Index, UUID: c.UUID, MemMiB: s.memoryOn(c), Cores: s.Cores, Vid: vid,
	}
	c.tenants[vid] = struct{}{}
	c.usedCores += grant.Cores
	c.usedMiB += grant.MemMiB
	return grant
}

func (c *Card) remove(g Grant) {
	delete(c.tenants, g.Vid)
	c.usedCores -= g.Cores
	c.usedMiB -= g.MemMiB
}

// clone copies the cards so that a trial leaves the original as it was.
func clone(cards []Card) []Card {
	copied := make([]Card, len(cards))
	for i := range cards {
		copied[i] = cards[i]
		copied[i].tenants = make(map[int]struct{}, len(cards[i].tenants)+1)
		for vid := range cards[i].tenants {
			copied[i].tenants[vid] = struct{}{}
		}
	}
	return copied
}
