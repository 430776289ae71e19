// SPDX-License-Identifier: Apache-2.0

// Package modes decides what the slices of one card may use now, given who is active. Pure: a snapshot
// in, grants out; the same snapshot gives the same grants, in any order of its slices.
package modes

import (
	"sort"

	"flexai.io/xpu/cluster/pages"
)

// FrameUs is the frame in which slices of mode fixed-share have their windows.
const FrameUs = 100_000

// full is a whole card, in percent.
const full = 100.0

// least is the smallest share worth running with; below it a slice is paused.
const least = 1.0

// Slice is what is known of one slice of the card.
type Slice struct {
	Mode   pages.Mode
	Cores  uint32 // percent; 0 without a limit
	Weight uint32
	VID    uint32
	// Active: it runs, waits or owes time. A paused slice that waits is active too.
	Active bool
	// Unseen: it has processes but is not metered, so nobody can tell whether it is idle.
	Unseen bool
}

// Grant is what the page of a slice says beside its promised share.
type Grant struct {
	EffectiveQ16  uint32 // 0: the promised share
	Paused        bool
	FrameUs       uint32
	WindowStartUs uint32
	WindowUs      uint32
}

// Decide gives the grants of the slices of a card, in their order.
//
// Promised shares of active slices are theirs. What is left is lent to active elastic slices, on top of
// their share, and to slices of mode priority that have a weight, by weight. Those without run while
// nobody else is active.
func Decide(slices []Slice) []Grant {
	grants := make([]Grant, len(slices))
	windows(slices, grants)
	left := leftover(slices)
	weights := 0.0
	for _, slice := range slices {
		if borrows(slice) && slice.Active {
			weights += weight(slice)
		}
	}
	for i, slice := range slices {
		switch {
		case slice.Mode == pages.ModePriority && slice.Weight == 0:
			grants[i] = scavenge(slices, left)
		case slice.Mode == pages.ModePriority:
			grants[i] = borrow(0, left, part(slice, weights))
		case borrows(slice) && slice.Active:
			grants[i] = borrow(float64(slice.Cores), left, part(slice, weights))
		}
	}
	return grants
}

// leftover is what active slices were not promised. A slice that can't be seen idle is owed all of it.
func leftover(slices []Slice) float64 {
	left := full
	for _, slice := range slices {
		switch {
		case slice.Unseen:
			return 0
		case slice.Active && slice.Mode != pages.ModePriority:
			left -= float64(slice.Cores)
		}
	}
	return max(left, 0)
}

func borrows(slice Slice) bool {
	return slice.Mode == pages.ModeElastic && slice.Cores > 0 || slice.Mode == pages.ModePriority && slice.Weight > 0
}

// weight of an elastic slice without one is the smallest: what it borrows is idle time anyhow.
func weight(slice Slice) float64 { return float64(max(slice.Weight, 1)) }

// part counts a slice among the active ones: what it would get as soon as it asks.
func part(slice Slice, weights float64) float64 {
	if !slice.Active {
		weights += weight(slice)
	}
	return weight(slice) / weights
}

func borrow(own, left, part float64) Grant {
	share := min(own+left*part, full)
	if share < least {
		return Grant{EffectiveQ16: q16(least), Paused: true}
	}
	return Grant{EffectiveQ16: q16(share)}
}

// scavenge is the grant of mode priority with weight 0. Several of them share alike.
func scavenge(slices []Slice, left float64) Grant {
	alike := 0
	for _, slice := range slices {
		switch {
		case slice.Mode == pages.ModePriority && slice.Weight == 0:
			alike++
		case slice.Active || slice.Unseen:
			return Grant{EffectiveQ16: q16(least), Paused: true}
		}
	}
	return borrow(0, left, 1/float64(alike))
}

func q16(percent float64) uint32 { return uint32(percent * pages.TrimOne) }

// windows gives the fixed-share slices of a card disjoint windows, as long as their shares are of a
// frame. In the order of virtual numbers, which don't change while a slice lives.
func windows(slices []Slice, grants []Grant) {
	var order []int
	for i, slice := range slices {
		if slice.Mode == pages.ModeFixedShare && slice.Cores > 0 {
			order = append(order, i)
		}
	}
	sort.SliceStable(order, func(a, b int) bool { return slices[order[a]].VID < slices[order[b]].VID })
	start := uint32(0)
	for _, i := range order {
		// More than a whole card can't be promised; were it, the last ones' windows are cut.
		length := min(slices[i].Cores*(FrameUs/full), FrameUs-start)
		grants[i] = Grant{FrameUs: FrameUs, WindowStartUs: start, WindowUs: length}
		start += length
	}
}
