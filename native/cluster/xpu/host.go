// SPDX-License-Identifier: Apache-2.0

package xpu

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// HostPodUID stands where a pod's UID would, in slices that the host registers itself. No pod has it: a
// pod's UID is a UUID or a hash.
const HostPodUID = "host"

// AnyCard leaves the choice of the card to us.
const AnyCard = "auto"

// HostOwner is the owner of the host's slice of that name.
func HostOwner(name string) Owner { return Owner{PodUID: HostPodUID, Container: name} }

// OfHost says that a slice belongs to no pod.
func (o Owner) OfHost() bool { return o.PodUID == HostPodUID }

// The key of a host's slice is its name. tokenKey is what Key makes.
var (
	hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)
	tokenKey = regexp.MustCompile(`^s[0-9a-f]{20}$`)
)

// CheckHostName refuses what can't name a CDI device and a directory alike, and what Key could make.
func CheckHostName(name string) error {
	switch {
	case !hostName.MatchString(name):
		return fmt.Errorf("name %q: 1 to 63 letters, digits, '_', '.' and '-' are allowed, with a letter or digit at both ends", name)
	case tokenKey.MatchString(name):
		return fmt.Errorf("name %q: 's' and 20 hexadecimal digits name the slices of pods; choose another", name)
	case name == "all":
		return fmt.Errorf(`name "all" means every device to those who know NVIDIA's; choose another`)
	}
	return nil
}

// Grant is what the host gives one slice of a card.
type Grant struct {
	// CoresPercent of the card; 0 is no compute limit.
	CoresPercent int
	// MemoryMiB of the card; 0 is all of its memory.
	MemoryMiB uint64
	Mode      Mode
	Weight    int
}

// Check refuses numbers that no card could be asked for.
func (g Grant) Check() error {
	needsCores := g.Mode == ModeElastic || g.Mode == ModeFixedShare
	switch {
	case g.CoresPercent < 0 || g.CoresPercent > FullCores:
		return fmt.Errorf("cores %d is not 0 (no compute limit) to %d percent of a card", g.CoresPercent, FullCores)
	case needsCores && g.CoresPercent == 0:
		return fmt.Errorf("mode %s needs cores, 1 to %d: they are what the slice is promised", g.Mode, FullCores)
	case g.Mode == ModePriority && g.CoresPercent > 0:
		return fmt.Errorf("mode priority is promised no cores, it runs in what others leave; leave cores (%d) out", g.CoresPercent)
	case g.Weight != 0 && g.Mode != ModeElastic && g.Mode != ModePriority:
		return fmt.Errorf("weight %d: only modes elastic and priority have one", g.Weight)
	}
	return Share{UUID: AnyCard, Mode: g.Mode, Weight: g.Weight}.check()
}

// PutHost gives the host's slice of that name what grant says, on a card by UUID or index, or on the
// best one (AnyCard). A slice that is there keeps its card and virtual number. The same again changes
// nothing.
func (l Ledger) PutHost(cards []Card, name, card string, grant Grant) (Ledger, Slice, error) {
	if err := CheckHostName(name); err != nil {
		return l, Slice{}, err
	}
	if err := grant.Check(); err != nil {
		return l, Slice{}, err
	}
	owner := HostOwner(name)
	held, there := l.Of(owner)
	candidates, err := choose(cards, card)
	if err != nil {
		return l, Slice{}, err
	}
	if there {
		if candidates, err = stay(candidates, held, card); err != nil {
			return l, Slice{}, err
		}
	}
	next := l.Release(owner)
	ask := Ask{Cards: 1, CoresPercent: grant.CoresPercent, MemoryMiB: grant.MemoryMiB, Mode: grant.Mode, Weight: grant.Weight}
	shares, err := Place(candidates, next.Slices(), ask, nil)
	if err != nil {
		return l, Slice{}, err
	}
	if there {
		shares[0].VID = held.Shares[0].VID // its own, so nobody has it
	}
	slice := Slice{Key: name, Owner: owner, Shares: shares}
	next.slices[owner] = slice
	return next, slice, nil
}

// choose are the cards that a choice means.
func choose(cards []Card, choice string) ([]Card, error) {
	if choice == AnyCard {
		return cards, nil
	}
	index, err := strconv.Atoi(choice)
	var names []string
	for _, card := range cards {
		if card.UUID == choice || err == nil && card.Index == index {
			return []Card{card}, nil
		}
		names = append(names, fmt.Sprintf("%d (%s)", card.Index, card.UUID))
	}
	return nil, fmt.Errorf("card %q is not here; there are %s, or %q", choice, strings.Join(names, ", "), AnyCard)
}

// stay keeps a slice on its card: what runs there can't be moved.
func stay(candidates []Card, held Slice, choice string) ([]Card, error) {
	uuid := held.Shares[0].UUID
	for _, card := range candidates {
		if card.UUID == uuid {
			return []Card{card}, nil
		}
	}
	if choice == AnyCard {
		return nil, fmt.Errorf("card %s of slice %s is not here any more; bring it back, or remove the slice", uuid, held.Key)
	}
	return nil, fmt.Errorf("slice %s is on card %s, not on %s, and a slice can't be moved; remove it, then add it anew",
		held.Key, uuid, choice)
}

// Free is what is left of a card.
type Free struct {
	CoresPercent int
	MemoryMiB    uint64
	Slices       int
}

// FreeOf is what slices leave of a card.
func FreeOf(card Card, held []Slice) Free {
	used := use(held)[card.UUID]
	return Free{CoresPercent: FullCores - used.cores, MemoryMiB: card.MemoryMiB - min(used.memory, card.MemoryMiB),
		Slices: max(card.Split-used.shares(), 0)}
}
