// SPDX-License-Identifier: Apache-2.0

package tend

import (
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/xpu"
)

// Seen is what the pages of one slice said at an instant. Whoever else in this program opened a ledger page
// would, by closing it, take away the lock under which the keeper clears a slot; so he asks the keeper.
type Seen struct {
	Slice  xpu.Slice
	MonoNs int64
	Cards  []SeenCard // as the shares of Slice
	// Processes hold a slot now.
	Processes int
}

// SeenCard is one card of it.
type SeenCard struct {
	Grant pages.Card
	Use   pages.CardUse
	// HeldBytes is the sum over the processes' slots, which are the truth where Use.MemoryBytes is late.
	HeldBytes uint64
}

// seen leaves out slices whose pages could not be read.
func (k *keeper) seen(now int64) []Seen {
	all := make([]Seen, 0, len(k.slices))
	for _, one := range k.slices {
		made := Seen{Slice: one.slice, MonoNs: now, Processes: len(one.members)}
		for i, p := range one.parts {
			if !p.known {
				break
			}
			made.Cards = append(made.Cards, SeenCard{one.config.Cards[i], p.use, p.held})
		}
		if len(made.Cards) > 0 && len(made.Cards) == len(one.parts) {
			all = append(all, made)
		}
	}
	return all
}
