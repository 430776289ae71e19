// SPDX-License-Identifier: Apache-2.0

package place

import (
	"fmt"
	"sort"
	"strings"
)

// Placement is a pod's grants, container by container in the ask's order, and how much the policy
// likes it (0 to 100).
type Placement struct {
	Containers [][]Grant
	Score      float64
}

// load is what a pod takes of one card, in the end of the sum over its containers and the turn of
// its passing ones.
type load struct {
	card int
	use  usage
}

// trial is a node's cards while one pod is being placed; taken is what others have. Passing
// containers come in turn with the others, so a pod's reservation on a card is the larger of both
// (as Kubernetes counts init containers).
type trial struct {
	cards    []Card
	taken    []usage
	beside   []usage // by the pod's containers that run together
	lasting  []usage // the part of beside that passing containers meet too
	reserved []usage
}

func newTrial(cards []Card, taken []usage) *trial {
	n := len(cards)
	all := make([]usage, 3*n)
	return &trial{cards: cards, taken: taken, beside: all[:n:n], lasting: all[n : 2*n : 2*n], reserved: all[2*n:]}
}

// met is what a container finds taken on a card.
func (t *trial) met(card int, c *ContainerAsk) usage {
	if c.Passing {
		return t.taken[card].plus(t.lasting[card])
	}
	return t.taken[card].plus(t.beside[card])
}

func (t *trial) admits(card int, c *ContainerAsk) bool {
	return t.cards[card].admits(t.met(card, c), c.Share)
}

// give takes the share out of a card.
func (t *trial) give(card int, c *ContainerAsk, use usage) {
	switch {
	case c.Passing:
		t.reserved[card] = t.reserved[card].atLeast(t.lasting[card].plus(use))
		return
	case c.Lasting:
		t.lasting[card] = t.lasting[card].plus(use)
	}
	t.beside[card] = t.beside[card].plus(use)
	t.reserved[card] = t.reserved[card].atLeast(t.beside[card])
}

func (t *trial) loads() []load {
	var loads []load
	for card, use := range t.reserved {
		if use != (usage{}) {
			loads = append(loads, load{card, use})
		}
	}
	return loads
}

func (t *trial) grant(card int, s Share) Grant {
	c := &t.cards[card]
	return Grant{Index: c.Index, UUID: c.UUID, MemMiB: s.memoryOn(c), Cores: s.Cores}
}

// site is a node as a policy sees it.
type site struct {
	cards []Card
	links Links
	taken []usage
}

// place chooses cards for every container. The largest shares choose first, since a small one
// finds room beside them more easily than the other way round, and passing containers last, since
// they may use what the others have. Virtual ids are given when the placement is held.
func (s *site) place(ask Ask, policy Policy) (Placement, []load, Reason) {
	if own, named := PolicyByName(ask.Policy); named {
		own.mixing = policy.mixing
		policy = own
	}
	trial := newTrial(s.cards, s.taken)
	placement := Placement{Containers: make([][]Grant, len(ask.Containers))}
	chosenLink := -1
	for _, at := range order(ask) {
		container := &ask.Containers[at]
		if container.Count == 0 {
			continue
		}
		cards, link := s.choose(trial, container, ask, policy)
		if cards == nil {
			return Placement{}, nil, noRoom(container, ask)
		}
		if link >= 0 && (chosenLink < 0 || link < chosenLink) {
			chosenLink = link
		}
		for _, card := range cards {
			placement.Containers[at] = append(placement.Containers[at], trial.grant(card, container.Share))
			trial.give(card, container, container.Share.on(&s.cards[card]))
		}
	}
	loads := trial.loads()
	placement.Score = s.score(loads, chosenLink, policy)
	return placement, loads, ""
}

// order lists the containers in the order in which they choose.
func order(ask Ask) []int {
	order := make([]int, len(ask.Containers))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool {
		x, y := &ask.Containers[order[a]], &ask.Containers[order[b]]
		switch {
		case x.Passing != y.Passing:
			return y.Passing
		case x.Share.Cores != y.Share.Cores:
			return x.Share.Cores > y.Share.Cores
		}
		return x.Share.MemMiB > y.Share.MemMiB
	})
	return order
}

// choose returns the positions of Count cards, or nil, and the weakest link between them where
// links counted, else -1.
func (s *site) choose(t *trial, c *ContainerAsk, ask Ask, policy Policy) ([]int, int) {
	var buffer [16]candidate
	found := s.candidates(t, c, ask.Models, buffer[:0])
	if policy.linked {
		for i := range found {
			for j := range found {
				found[i].ties += s.links.between(found[i].card, found[j].card)
			}
		}
	}
	if len(found) < c.Count {
		return nil, -1
	}
	if c.Passing {
		if own := reusable(t, c, found); len(own) >= c.Count {
			found = own
		}
	}
	if c.Count > 1 && (policy.linked || ask.Bandwidth > 0) {
		group := grouping{cards: s.cards, links: s.links, policy: policy, bandwidth: ask.Bandwidth}
		cards := group.find(found, c.Count)
		return cards, s.weakest(cards)
	}
	best := make([]int, 0, c.Count)
	for range c.Count {
		pick := 0
		for i := range found {
			if policy.better(found[i], found[pick], c.Share) {
				pick = i
			}
		}
		best = append(best, found[pick].card)
		found = append(found[:pick], found[pick+1:]...)
	}
	sort.Ints(best)
	return best, -1
}

func (s *site) candidates(t *trial, c *ContainerAsk, models []string, found []candidate) []candidate {
	for i := range s.cards {
		card := &s.cards[i]
		if !card.Healthy || !card.isOne(models) || !card.serves(c.Count) || !t.admits(i, c) {
			continue
		}
		met := t.met(i, c)
		found = append(found, candidate{
			card: i, fill: card.fill(met.plus(c.Share.on(card))),
			reserved: met.cores > 0, bestEffort: met.bestEffort,
		})
	}
	return found
}

// reusable are those candidates on which a passing container needs no more than its pod reserves
// there anyway.
func reusable(t *trial, c *ContainerAsk, found []candidate) []candidate {
	var own []candidate
	for _, one := range found {
		use := t.lasting[one.card].plus(c.Share.on(&t.cards[one.card]))
		if t.reserved[one.card].covers(use) {
			own = append(own, one)
		}
	}
	return own
}

func (s *site) weakest(cards []int) int {
	weakest := -1
	for i := range cards {
		for j := range i {
			if link := s.links.between(cards[i], cards[j]); weakest < 0 || link < weakest {
				weakest = link
			}
		}
	}
	return weakest
}

func noRoom(c *ContainerAsk, ask Ask) Reason {
	share := c.Share
	what := fmt.Sprintf("%d %% cores", share.Cores)
	if share.Cores == 0 {
		what = "unlimited cores"
	}
	if share.BestEffort {
		what = "room for a best-effort share"
	}
	if share.MemMiB == 0 {
		what += " and all memory"
	} else {
		what += fmt.Sprintf(" and %d MiB", share.MemMiB)
	}
	which := "healthy"
	if len(ask.Models) > 0 {
		which += " " + strings.Join(ask.Models, " or ")
	}
	if c.Count == 1 {
		return refusal("no %s card has %s free", which, what)
	}
	linked := ""
	if ask.Bandwidth > 0 {
		linked = fmt.Sprintf(" linked by %d or better", ask.Bandwidth)
	}
	return refusal("fewer than %d %s cards%s have %s free", c.Count, which, linked, what)
}

const (
	// cardWeight: the touched cards decide, the node's fill only orders nodes whose cards are equal.
	cardWeight = 0.8
	// linkWeight: a better linked group is worth more than a fuller node.
	linkWeight = 0.6
	// bestLink is what counts as the best there is: 20 NVLinks by the matrix's scale.
	bestLink = 250
	// mixWeight: half of the points tell whether best-effort shares lie as they should.
	mixWeight = 0.5
)

// score is what the policy thinks of the node after the pod's loads joined.
func (s *site) score(loads []load, link int, policy Policy) float64 {
	if len(loads) == 0 {
		return 0
	}
	var node, chosen float64
	next, alone := 0, 0
	for i := range s.cards {
		if next < len(loads) && loads[next].card == i {
			fill := s.cards[i].fill(s.taken[i].plus(loads[next].use))
			node += fill
			chosen += fill
			if s.taken[i].bestEffort > 0 || s.taken[i].cores == 0 {
				alone++
			}
			next++
			continue
		}
		node += s.cards[i].fill(s.taken[i])
	}
	chosen /= float64(len(loads))
	node /= float64(len(s.cards))
	worth := policy.worth(cardWeight*chosen + (1-cardWeight)*node)
	if policy.linked && link >= 0 {
		worth = linkWeight*min(float64(link)/bestLink, 1) + (1-linkWeight)*worth
	}
	if policy.mixing && loads[0].use.bestEffort > 0 {
		beside := 1 - float64(alone)/float64(len(loads))
		worth = mixWeight*beside + (1-mixWeight)*worth
	}
	return 100 * min(max(worth, 0), 1)
}

// Matches says whether a placement gives exactly what the ask wants, container by container.
func (p Placement) Matches(ask Ask) bool {
	if len(p.Containers) != len(ask.Containers) {
		return false
	}
	for i := range ask.Containers {
		if !ask.Containers[i].isGiven(p.Containers[i]) {
			return false
		}
	}
	return true
}

func (c *ContainerAsk) isGiven(grants []Grant) bool {
	if len(grants) != c.Count {
		return false
	}
	for _, grant := range grants {
		if grant.Cores != c.Share.Cores || c.Share.MemMiB != 0 && grant.MemMiB != c.Share.MemMiB {
			return false
		}
	}
	return true
}
