// SPDX-License-Identifier: Apache-2.0

package place

import (
	"fmt"
	"math/bits"
	"sort"
	"strconv"
	"strings"
)

// Links is a node's topology matrix: how well each card reaches each other, higher is better. A nil
// matrix knows no links.
type Links [][]int

// DecodeLinks reads annotation huawei.com/node-gpu-topology: as many rows as cards, "," in rows,
// ";" between.
func DecodeLinks(text string, cards int) (Links, error) {
	text = strings.TrimSuffix(strings.TrimSpace(text), ";")
	if text == "" {
		return nil, nil
	}
	rows := strings.Split(text, ";")
	if len(rows) != cards {
		return nil, fmt.Errorf("%d rows for %d cards", len(rows), cards)
	}
	links := make(Links, cards)
	for i, row := range rows {
		fields := strings.Split(strings.TrimSuffix(row, ","), ",")
		if len(fields) != cards {
			return nil, fmt.Errorf("row %d has %d values for %d cards", i, len(fields), cards)
		}
		links[i] = make([]int, cards)
		for j, field := range fields {
			value, err := strconv.ParseUint(strings.TrimSpace(field), 10, 31)
			if err != nil {
				return nil, fmt.Errorf("row %d: %q is not a number from 0 to 2147483647", i, field)
			}
			links[i][j] = int(value)
		}
	}
	return links, nil
}

// between is the weaker direction, for a matrix may disagree with itself.
func (l Links) between(a, b int) int {
	if l == nil {
		return 0
	}
	return min(l[a][b], l[b][a])
}

// group is a set of cards for one container, with what the order looks at.
type group struct {
	cards  []int
	link   int // weakest link
	sum    int // of all links
	numas  int // how many NUMA nodes it spans
	fill   float64
	exists bool
}

// grouping finds the best group of several cards.
type grouping struct {
	cards     []Card
	links     Links
	policy    Policy
	bandwidth int
}

// exactUpTo is the most candidates whose subsets are all looked at: 2⁸.
const exactUpTo = 8

// find returns count of the candidates, or nil when no group is linked well enough. Above exactUpTo
// candidates it grows a group from each card in turn, which can miss a group that the bandwidth
// would allow where links aren't transitive; within one NVLink domain they are.
func (g *grouping) find(found []candidate, count int) []int {
	best := group{}
	consider := func(chosen []candidate) {
		if one := g.measure(chosen); one.link >= g.bandwidth && (!best.exists || g.better(one, best)) {
			best = one
		}
	}
	if len(found) <= exactUpTo {
		chosen := make([]candidate, 0, count)
		for set := uint(0); set < 1<<len(found); set++ {
			if bits.OnesCount(set) != count {
				continue
			}
			chosen = chosen[:0]
			for rest := set; rest != 0; rest &= rest - 1 {
				chosen = append(chosen, found[bits.TrailingZeros(rest)])
			}
			consider(chosen)
		}
		return best.cards
	}
	for start := range found {
		consider(g.grow(found, start, count))
	}
	return best.cards
}

// grow adds the best next card until there are count.
func (g *grouping) grow(found []candidate, start, count int) []candidate {
	chosen := []candidate{found[start]}
	used := make([]bool, len(found))
	used[start] = true
	for len(chosen) < count {
		next, best := -1, group{}
		for i := range found {
			if used[i] {
				continue
			}
			one := g.measure(append(chosen[:len(chosen):len(chosen)], found[i]))
			if next < 0 || g.better(one, best) {
				next, best = i, one
			}
		}
		chosen, used[next] = append(chosen, found[next]), true
	}
	sort.Slice(chosen, func(a, b int) bool { return chosen[a].card < chosen[b].card })
	return chosen
}

func (g *grouping) measure(chosen []candidate) group {
	one := group{cards: make([]int, len(chosen)), exists: true, link: int(^uint(0) >> 1)}
	for i, a := range chosen {
		one.cards[i] = a.card
		one.fill += a.fill
		fresh := 1
		for _, b := range chosen[:i] {
			link := g.links.between(a.card, b.card)
			one.sum += link
			one.link = min(one.link, link)
			if g.cards[a.card].NUMA == g.cards[b.card].NUMA {
				fresh = 0
			}
		}
		one.numas += fresh
	}
	return one
}

// better: the weakest link first, since collective operations go at its pace; then all links, then
// NUMA nodes, then the policy's order of fill. Of equal groups the first stays.
func (g *grouping) better(a, b group) bool {
	if g.policy.linked {
		switch {
		case a.link != b.link:
			return a.link > b.link
		case a.sum != b.sum:
			return a.sum > b.sum
		case a.numas != b.numas:
			return a.numas < b.numas
		}
	}
	return g.policy.prefers(a.fill, b.fill)
}
