// SPDX-License-Identifier: Apache-2.0

package xpu

import (
	"fmt"
	"sort"
	"strings"
)

// usage is what is taken of one card.
type usage struct {
	cores  int
	memory uint64
	vids   map[int]bool
	// unlimited are the shares without a compute limit.
	unlimited int
}

func (u usage) shares() int { return len(u.vids) }

// use sums shares by card.
func use(slices []Slice) map[string]usage {
	total := map[string]usage{}
	for _, slice := range slices {
		for _, share := range slice.Shares {
			u := total[share.UUID]
			if u.vids == nil {
				u.vids = map[int]bool{}
			}
			u.cores += share.CoresPercent
			u.memory += share.MemoryMiB
			u.vids[share.VID] = true
			if unlimited(share.CoresPercent, share.Mode) {
				u.unlimited++
			}
			total[share.UUID] = u
		}
	}
	return total
}

// Place chooses cards for an ask, given what slices hold already. Cards of preferred (UUIDs) are
// taken first while they fit; a preference is advice, never a right. Among the others the fullest
// card that fits is best: it keeps whole cards free.
func Place(cards []Card, held []Slice, ask Ask, preferred []string) ([]Share, error) {
	used := use(held)
	var fitting []Card
	for _, card := range cards {
		if refusal(card, used[card.UUID], ask) == "" {
			fitting = append(fitting, card)
		}
	}
	if len(fitting) < ask.Cards {
		return nil, &NoFit{Ask: ask, Free: describe(cards, used, ask)}
	}
	rank := ranks(preferred)
	sort.SliceStable(fitting, func(i, j int) bool { return better(fitting[i], fitting[j], used, rank) })
	chosen := joined(fitting, ask.Cards, ask.Bandwidth)
	if chosen == nil {
		return nil, &NoFit{Ask: ask, Free: fmt.Sprintf("no %d of the cards with room are joined by %d or more; %s",
			ask.Cards, ask.Bandwidth, describe(cards, used, ask))}
	}
	shares := make([]Share, 0, ask.Cards)
	for _, card := range chosen {
		shares = append(shares, share(card, used[card.UUID], ask))
	}
	return shares, nil
}

// NoFit says that an ask fits no card now; it may after another slice ends.
type NoFit struct {
	Ask  Ask
	Free string
}

func (e *NoFit) Error() string {
	return fmt.Sprintf("no room for %s; %s", e.Ask, e.Free)
}

func ranks(preferred []string) map[string]int {
	rank := map[string]int{}
	for i, uuid := range preferred {
		if _, known := rank[uuid]; !known {
			rank[uuid] = i - len(preferred)
		}
	}
	return rank
}

func better(a, b Card, used map[string]usage, rank map[string]int) bool {
	if rank[a.UUID] != rank[b.UUID] {
		return rank[a.UUID] < rank[b.UUID]
	}
	freeA, freeB := a.MemoryMiB-used[a.UUID].memory, b.MemoryMiB-used[b.UUID].memory
	if freeA != freeB {
		return freeA < freeB
	}
	if used[a.UUID].cores != used[b.UUID].cores {
		return used[a.UUID].cores > used[b.UUID].cores
	}
	return a.Index < b.Index
}

// refusal tells why a card can't take one share of an ask; empty when it can.
func refusal(card Card, u usage, ask Ask) string {
	switch {
	case !card.Healthy:
		return "unhealthy"
	case !card.isOf(ask.Models):
		return "model " + card.Short()
	case card.Instance != nil && ask.Cards > 1:
		// However many it could open, CUDA shows a process one instance, and no card beside it.
		return "a MIG instance, beside which a process sees no other card"
	case u.shares() >= card.Split:
		return fmt.Sprintf("all %d slices taken", card.Split)
	case ask.MemoryMiB == 0 && u.memory > 0:
		return fmt.Sprintf("%d MiB already taken", u.memory)
	case u.memory+memoryOf(card, ask) > card.MemoryMiB:
		return "too little memory"
	case u.cores+ask.CoresPercent > FullCores:
		return "too few cores"
	case u.cores == FullCores && unlimited(ask.CoresPercent, ask.Mode):
		return "all of its cores promised, and a share without compute limit would take them"
	case ask.CoresPercent == FullCores && u.unlimited > 0:
		return "a share without compute limit on it, so that all cores can't be promised"
	}
	return ""
}

// unlimited says whether nothing keeps a share off cores that others were promised. One of mode
// priority has none of its own either, but runs only in what others leave.
func unlimited(cores int, mode Mode) bool { return cores == 0 && mode != ModePriority }

func memoryOf(card Card, ask Ask) uint64 {
	if ask.MemoryMiB == 0 {
		return card.MemoryMiB
	}
	return ask.MemoryMiB
}

func share(card Card, u usage, ask Ask) Share {
	vid := 0
	for u.vids[vid] {
		vid++
	}
	return Share{UUID: card.UUID, VID: vid, CoresPercent: ask.CoresPercent, MemoryMiB: memoryOf(card, ask),
		Mode: ask.Mode, Weight: ask.Weight}
}

func describe(cards []Card, used map[string]usage, ask Ask) string {
	if len(cards) == 0 {
		return "this node has no card"
	}
	parts := make([]string, 0, len(cards))
	for _, card := range cards {
		u := used[card.UUID]
		// A card that came back smaller than what it holds has nothing free, not a wrapped number.
		free := card.MemoryMiB - min(u.memory, card.MemoryMiB)
		text := fmt.Sprintf("%s: %d %% cores and %d MiB free", card.UUID, FullCores-u.cores, free)
		if why := refusal(card, u, ask); why != "" {
			text += " (" + why + ")"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}
