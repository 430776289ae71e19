// SPDX-License-Identifier: Apache-2.0

package place

import (
	"fmt"
	"sort"
)

// Placement is a pod's grants, container by container in the pod's order, and how much the
// policy likes it (0 to 100).
type Placement struct {
	Containers [][]Grant
	Score      float64
}

// Policy orders the cards that fit; prefers gets how full two cards would be afterwards.
type Policy struct {
	Name    string
	prefers func(a, b float64) bool
	worth   func(fill float64) float64
}

// The two policies differ by one comparator.
var (
	Binpack = Policy{
		Name:    "binpack",
		prefers: func(a, b float64) bool { return a > b },
		worth:   func(fill float64) float64 { return fill },
	}
	Spread = Policy{
		Name:    "spread",
		prefers: func(a, b float64) bool { return a < b },
		worth:   func(fill float64) float64 { return 1 - fill },
	}
)

// PolicyByName finds a policy; ok is false for a name that is none.
func PolicyByName(name string) (policy Policy, ok bool) {
	for _, known := range []Policy{Binpack, Spread} {
		if known.Name == name {
			return known, true
		}
	}
	return Policy{}, false
}

// Place chooses cards for every container of a pod on a copy of the cards. The largest shares
// choose first, since a small one finds room beside them more easily than the other way round.
// Cost is linear in cards for each virtual card.
func Place(cards []Card, ask Ask, policy Policy) (Placement, Reason) {
	trial := clone(cards)
	placement := Placement{Containers: make([][]Grant, len(ask))}
	touched := map[int]struct{}{}
	for _, at := range largestFirst(ask) {
		grants := make([]Grant, 0, ask[at].Count)
		mine := map[int]struct{}{}
		for range ask[at].Count {
			card := choose(trial, ask[at].Share, policy, mine)
			if card < 0 {
				return Placement{}, noRoom(ask[at])
			}
			grants = append(grants, trial[card].take(ask[at].Share, 0))
			mine[card], touched[card] = struct{}{}, struct{}{}
		}
		placement.Containers[at] = grants
	}
	placement.Score = score(trial, touched, policy)
	return placement, ""
}

func largestFirst(ask Ask) []int {
	order := make([]int, len(ask))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool {
		x, y := ask[order[a]].Share, ask[order[b]].Share
		if x.Cores != y.Cores {
			return x.Cores > y.Cores
		}
		return x.MemMiB > y.MemMiB
	})
	return order
}

// choose returns the position of the best card that fits and is not excluded, or -1; of equally
// good ones the first.
func choose(cards []Card, share Share, policy Policy, excluded map[int]struct{}) int {
	best, bestFill := -1, 0.0
	for i := range cards {
		if _, taken := excluded[i]; taken || !cards[i].fits(share) {
			continue
		}
		fill := cards[i].fillWith(share)
		if best < 0 || policy.prefers(fill, bestFill) {
			best, bestFill = i, fill
		}
	}
	return best
}

func noRoom(container ContainerAsk) Reason {
	share := container.Share
	what := fmt.Sprintf("%d %% cores", share.Cores)
	if share.Cores == 0 {
		what = "unlimited cores"
	}
	if share.MemMiB == 0 {
		what += " and all memory"
	} else {
		what += fmt.Sprintf(" and %d MiB", share.MemMiB)
	}
	if container.Count == 1 {
		return Reason("no healthy card has " + what + " free")
	}
	return Reason(fmt.Sprintf("fewer than %d healthy cards have %s free", container.Count, what))
}

// cardWeight: the touched cards decide, the node's fill only orders nodes whose cards are equal.
const cardWeight = 0.8

func score(cards []Card, touched map[int]struct{}, policy Policy) float64 {
	if len(touched) == 0 {
		return 0
	}
	var node, chosen float64
	for i := range cards {
		fill := cards[i].fill()
		node += fill
		if _, ok := touched[i]; ok {
			chosen += fill
		}
	}
	chosen /= float64(len(touched))
	node /= float64(len(cards))
	return 100 * policy.worth(cardWeight*chosen+(1-cardWeight)*node)
}

// Commit gives the placement out of the cards and returns it as it stands then: virtual ids that
// collide are replaced. It refuses, and changes nothing, when a card is unknown or a grant does
// not fit, for a placement read from an annotation proves nothing.
func Commit(cards []Card, placement Placement) (Placement, error) {
	settled := Placement{Containers: make([][]Grant, len(placement.Containers)), Score: placement.Score}
	for i, grants := range placement.Containers {
		for _, grant := range grants {
			standing, err := commitOne(cards, grant)
			if err != nil {
				Release(cards, settled)
				return Placement{}, err
			}
			settled.Containers[i] = append(settled.Containers[i], standing)
		}
	}
	return settled, nil
}

func commitOne(cards []Card, grant Grant) (Grant, error) {
	card := find(cards, grant.UUID)
	if card == nil {
		return Grant{}, fmt.Errorf("card %s is not on this node", grant.UUID)
	}
	// An unhealthy card still holds what runs on it.
	standing := *card
	standing.Healthy = true
	share := Share{Cores: grant.Cores, MemMiB: grant.MemMiB}
	if !standing.fits(share) {
		return Grant{}, fmt.Errorf("card %s has no %d cores and %d MiB left",
			grant.UUID, grant.Cores, grant.MemMiB)
	}
	return card.take(share, grant.Vid), nil
}

// Release takes back what Commit gave out.
func Release(cards []Card, placement Placement) {
	for _, grant := range placement.grants() {
		if card := find(cards, grant.UUID); card != nil {
			card.remove(grant)
		}
	}
}

// Matches says whether a placement gives exactly what the ask wants, container by container.
func (p Placement) Matches(ask Ask) bool {
	if len(p.Containers) != len(ask) {
		return false
	}
	for i, container := range ask {
		if len(p.Containers[i]) != container.Count {
			return false
		}
		for _, grant := range p.Containers[i] {
			asked := container.Share
			if grant.Cores != asked.Cores || asked.MemMiB != 0 && grant.MemMiB != asked.MemMiB {
				return false
			}
		}
	}
	return true
}

func (p Placement) grants() []Grant {
	var all []Grant
	for _, container := range p.Containers {
		all = append(all, container...)
	}
	return all
}

func find(cards []Card, uuid string) *Card {
	for i := range cards {
		if cards[i].UUID == uuid {
			return &cards[i]
		}
	}
	return nil
}
