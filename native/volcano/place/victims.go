// SPDX-License-Identifier: Apache-2.0

package place

import (
	"cmp"
	"slices"
)

// Candidate is a tenant that may be made to leave for an ask.
type Candidate struct {
	Pod      string
	Priority int32
}

// Victims names the tenants that must leave so that the ask fits once they are gone: never one too
// many, and for one card never ones on different cards. Preferred are victims of low priority,
// then few, then small ones. Nil when evicting all of them would not help.
//
// From all candidates gone, each is let back in while the ask still fits, as kube-scheduler does.
// What then stays out is needed: a tenant on a card that the ask doesn't use would have been let
// back. Which cards that leaves depends on the order, so each card's tenants are tried alone too.
func (b *Books) Victims(ask Ask, policy Policy, candidates []Candidate) []string {
	all := b.evictables(candidates)
	best := b.reprieve(ask, policy, all)
	for card := range b.cards {
		onCard := func(e evictable) bool {
			return slices.ContainsFunc(e.loads, func(l load) bool { return l.card == card })
		}
		if some := slices.DeleteFunc(slices.Clone(all), func(e evictable) bool { return !onCard(e) }); len(some) < len(all) {
			best = cheaper(best, b.reprieve(ask, policy, some))
		}
	}
	if best == nil {
		return nil
	}
	pods := make([]string, len(best))
	for i := range best {
		pods[i] = best[i].pod
	}
	slices.Sort(pods)
	return pods
}

type evictable struct {
	pod        string
	priority   int32
	bestEffort bool
	size       float64 // in cards
	loads      []load
}

func (b *Books) evictables(candidates []Candidate) []evictable {
	var all []evictable
	for _, candidate := range candidates {
		has, ok := b.find(candidate.Pod)
		if !ok || has.state != resident {
			continue
		}
		one := evictable{pod: candidate.Pod, priority: candidate.Priority, bestEffort: has.bestEffort, loads: has.loads}
		for _, l := range has.loads {
			one.size += b.cards[l.card].fill(l.use)
		}
		all = append(all, one)
	}
	return all
}

// reprieve returns the cheaper of two orders: large ones back first, which leaves small victims,
// and small ones back first, which leaves few.
func (b *Books) reprieve(ask Ask, policy Policy, all []evictable) []evictable {
	var best []evictable
	for _, sign := range []int{-1, 1} {
		ordered := slices.Clone(all)
		slices.SortFunc(ordered, func(x, y evictable) int {
			return cmp.Or(
				-cmp.Compare(x.priority, y.priority),
				cmp.Compare(asInt(x.bestEffort), asInt(y.bestEffort)),
				sign*cmp.Compare(x.size, y.size),
				cmp.Compare(x.pod, y.pod))
		})
		best = cheaper(best, b.letBack(ask, policy, ordered))
	}
	return best
}

func asInt(flag bool) int {
	if flag {
		return 1
	}
	return 0
}

// letBack returns who can't come back, or nil when the ask doesn't fit without all of them.
func (b *Books) letBack(ask Ask, policy Policy, ordered []evictable) []evictable {
	node := site{b.cards, b.links, b.takenLater()}
	apply := func(one evictable, change func(usage, usage) usage) {
		for _, l := range one.loads {
			node.taken[l.card] = change(node.taken[l.card], l.use)
		}
	}
	for _, one := range ordered {
		apply(one, usage.minus)
	}
	if _, _, reason := node.place(ask, policy); reason != "" {
		return nil
	}
	out := []evictable{}
	for _, one := range ordered {
		apply(one, usage.plus)
		if _, _, reason := node.place(ask, policy); reason != "" {
			apply(one, usage.minus)
			out = append(out, one)
		}
	}
	return out
}

// cheaper compares two sets of victims; nil is none at all.
func cheaper(a, b []evictable) []evictable {
	if a == nil || b == nil {
		if a == nil {
			return b
		}
		return a
	}
	highest := func(set []evictable) (most int32) {
		for i, one := range set {
			if i == 0 || one.priority > most {
				most = one.priority
			}
		}
		return most
	}
	sizes := func(set []evictable) (sum float64) {
		for _, one := range set {
			sum += one.size
		}
		return sum
	}
	if cmp.Or(cmp.Compare(highest(b), highest(a)), cmp.Compare(len(b), len(a)), cmp.Compare(sizes(b), sizes(a))) < 0 {
		return b
	}
	return a
}
