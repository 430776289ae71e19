// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"flexai.io/xpu/cluster/checkpoint"
	"flexai.io/xpu/cluster/xpu"
)

// Excess are the ids of each resource that stand for nothing a card could still give, because a card is
// sick, a whole card was asked for by number alone, or the host holds slices of its own. Withdrawing them
// keeps the node's totals true for schedulers that know nothing else. It is a backstop: who gets what is
// settled in Prepare. offered are the ids by resource.
//
// Only free ids are named. The kubelet re-admits no pod after a reboot of which it holds a withdrawn id,
// and as ids mean no card, any free one will do.
func (a *Agent) Excess(offered map[string][]string) (map[string]map[string]bool, error) {
	entries, err := a.Kubelet.Checkpoint()
	if err != nil {
		return nil, err
	}
	return excess(a.Resources, entries, a.Ledger().Slices(), a.KnownCards(), offered), nil
}

func excess(names Resources, entries []checkpoint.Entry, slices []xpu.Slice, cards []xpu.Card,
	offered map[string][]string) map[string]map[string]bool {
	taken, owned := map[string]map[string]bool{names.Number: {}, names.Cores: {}, names.Memory: {}}, map[xpu.Owner]bool{}
	for _, entry := range entries {
		for _, id := range entry.IDs {
			if taken[entry.Resource] != nil {
				taken[entry.Resource][id] = true
			}
		}
	}
	var held []xpu.Slice
	for _, slice := range slices {
		owned[slice.Owner] = true
		// Ids that came back belong to whoever is next, and his claim ends the former slice.
		if len(slice.Tokens) == 0 || anyOf(slice.Tokens, taken[names.Number]) {
			held = append(held, slice)
		}
	}
	pending := map[string]int{}
	for _, entry := range entries {
		if !owned[xpu.Owner{PodUID: entry.PodUID, Container: entry.Container}] {
			pending[entry.Resource] += len(entry.IDs)
		}
	}
	room := xpu.Room(cards, held)
	withdrawn := map[string]map[string]bool{}
	for resource, free := range map[string]int{names.Number: room.Number, names.Cores: room.Cores, names.Memory: room.MemoryGiB} {
		withdrawn[resource] = beyond(offered[resource], taken[resource], free-pending[resource])
	}
	return withdrawn
}

func anyOf(ids []string, in map[string]bool) bool {
	for _, id := range ids {
		if in[id] {
			return true
		}
	}
	return false
}

// beyond are the free ids after the first keep ones.
func beyond(offered []string, taken map[string]bool, keep int) map[string]bool {
	rest := map[string]bool{}
	for _, id := range offered {
		if taken[id] {
			continue
		}
		if keep--; keep < 0 {
			rest[id] = true
		}
	}
	return rest
}

// SetCards replaces what is known of the node's cards: their health, that is.
func (a *Agent) SetCards(cards []xpu.Card) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	a.Cards = cards
}

// KnownCards are the node's cards with their health.
func (a *Agent) KnownCards() []xpu.Card {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.Cards
}
