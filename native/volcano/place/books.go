// SPDX-License-Identifier: Apache-2.0

package place

import (
	"fmt"
	"math/bits"
	"slices"
)

// HostPod stands in place of a pod's UID before shares that the host itself gave out.
const HostPod = "host"

// state of what a pod holds. Leaving pods hold their cards until they are gone, and coming ones
// have been promised what leaving ones will free.
type state uint8

const (
	gone state = iota
	resident
	leaving
	coming
)

type holding struct {
	placement  Placement
	loads      []load
	state      state
	bestEffort bool
}

// Books are one node's cards and who has what of them. What was read of a node is kept between
// scheduling sessions; a session works on a Copy, which is cheap: it shares the holdings it was
// made from and writes down only what changes.
type Books struct {
	cards   []Card
	links   Links
	used    []usage // by residents and leaving ones
	leaving []usage
	coming  []usage
	vids    []vidSet
	shared  map[string]holding // never written once another Books has it
	own     map[string]holding // what differs from shared; state gone hides an entry
}

// NewBooks opens the books of a node whose cards are all free.
func NewBooks(cards []Card, links Links) *Books {
	all := make([]usage, 3*len(cards))
	n := len(cards)
	return &Books{
		cards: cards, links: links, vids: make([]vidSet, n), own: map[string]holding{},
		used: all[:n:n], leaving: all[n : 2*n : 2*n], coming: all[2*n:],
	}
}

// Copy is independent of the original, which must not change any more.
func (b *Books) Copy() *Books {
	fresh := NewBooks(b.cards, b.links)
	copy(fresh.used, b.used)
	copy(fresh.leaving, b.leaving)
	copy(fresh.coming, b.coming)
	copy(fresh.vids, b.vids)
	fresh.shared = b.own
	if len(b.shared) > 0 {
		fresh.shared = map[string]holding{}
		b.each(func(pod string, has holding) { fresh.shared[pod] = has })
	}
	return fresh
}

func (b *Books) find(pod string) (holding, bool) {
	if has, ok := b.own[pod]; ok {
		return has, has.state != gone
	}
	has, ok := b.shared[pod]
	return has, ok
}

func (b *Books) each(do func(pod string, has holding)) {
	for pod, has := range b.own {
		if has.state != gone {
			do(pod, has)
		}
	}
	for pod, has := range b.shared {
		if _, changed := b.own[pod]; !changed {
			do(pod, has)
		}
	}
}

// Holds says what a pod holds here now; a coming one holds nothing yet.
func (b *Books) Holds(pod string) (Placement, bool) {
	has, ok := b.find(pod)
	return has.placement, ok && has.state != coming
}

// IsLeaving says whether a pod has been told to go and holds its cards still.
func (b *Books) IsLeaving(pod string) bool {
	has, _ := b.find(pod)
	return has.state == leaving
}

// taken is what is used, and what was promised beyond that which leaves: promised room is not
// given to somebody else.
func (b *Books) taken() []usage {
	taken := make([]usage, len(b.cards))
	for i := range taken {
		taken[i] = b.used[i].atLeast(b.used[i].minus(b.leaving[i]).plus(b.coming[i]))
	}
	return taken
}

// takenLater is when all that leave have left and all that come have come.
func (b *Books) takenLater() []usage {
	taken := make([]usage, len(b.cards))
	for i := range taken {
		taken[i] = b.used[i].minus(b.leaving[i]).plus(b.coming[i])
	}
	return taken
}

// Place chooses cards as they are now. It changes nothing. Cost is linear in cards for each
// virtual card, but for groups of linked cards (see grouping).
func (b *Books) Place(ask Ask, policy Policy) (Placement, Reason) {
	placement, _, reason := (&site{b.cards, b.links, b.taken()}).place(ask, policy)
	return placement, reason
}

// PlaceLater chooses cards as they will be when those that leave have left.
func (b *Books) PlaceLater(ask Ask, policy Policy) (Placement, Reason) {
	placement, _, reason := (&site{b.cards, b.links, b.takenLater()}).place(ask, policy)
	return placement, reason
}

// AnyLeaving says whether room is being made.
func (b *Books) AnyLeaving() bool {
	return slices.ContainsFunc(b.leaving, func(u usage) bool { return u != usage{} })
}

// PlaceEmpty chooses as if nobody were here: where that fails, evicting can't help.
func (b *Books) PlaceEmpty(ask Ask, policy Policy) Reason {
	_, _, reason := (&site{b.cards, b.links, make([]usage, len(b.cards))}).place(ask, policy)
	return reason
}

// Give places a pod on the cards as they are now and writes it down.
func (b *Books) Give(pod string, ask Ask, policy Policy) (Placement, Reason) {
	placement, loads, reason := (&site{b.cards, b.links, b.taken()}).place(ask, policy)
	if reason != "" {
		return Placement{}, reason
	}
	return b.write(pod, holding{placement, loads, resident, ask.bestEffort()}), ""
}

// Expect promises a pod room that others are leaving.
func (b *Books) Expect(pod string, ask Ask, policy Policy) Reason {
	placement, loads, reason := (&site{b.cards, b.links, b.takenLater()}).place(ask, policy)
	if reason == "" {
		b.write(pod, holding{placement, loads, coming, ask.bestEffort()})
	}
	return reason
}

func (a Ask) bestEffort() bool {
	return slices.ContainsFunc(a.Containers, func(c ContainerAsk) bool { return c.Share.BestEffort })
}

// write enters a holding; residents get their virtual ids.
func (b *Books) write(pod string, has holding) Placement {
	if has.state != coming {
		has.placement = b.number(has.placement)
	}
	b.own[pod] = has
	b.count(has, usage.plus)
	return has.placement
}

// count adds a holding to the sums of its state, or takes it out.
func (b *Books) count(has holding, apply func(usage, usage) usage) {
	for _, l := range has.loads {
		switch has.state {
		case coming:
			b.coming[l.card] = apply(b.coming[l.card], l.use)
			continue
		case leaving:
			b.leaving[l.card] = apply(b.leaving[l.card], l.use)
		}
		b.used[l.card] = apply(b.used[l.card], l.use)
	}
}

// Leave notes that a pod is going; it holds its cards until it is Released.
func (b *Books) Leave(pod string) { b.move(pod, resident, leaving) }

// Stay takes Leave back.
func (b *Books) Stay(pod string) { b.move(pod, leaving, resident) }

func (b *Books) move(pod string, from, to state) {
	has, ok := b.find(pod)
	if !ok || has.state != from {
		return
	}
	b.count(has, usage.minus)
	has.state = to
	b.count(has, usage.plus)
	b.own[pod] = has
}

// Release takes back all that a pod holds or was promised.
func (b *Books) Release(pod string) {
	has, ok := b.find(pod)
	if !ok {
		return
	}
	b.count(has, usage.minus)
	if has.state != coming {
		b.unnumber(has.placement)
	}
	delete(b.own, pod)
	if _, hidden := b.shared[pod]; hidden {
		b.own[pod] = holding{state: gone}
	}
}

// Tenancy is what is known of a pod that is on the node already. What is really bound comes from
// the node itself and is counted as it is. For containers that are not bound yet, the pod's own
// annotation is believed as far as it gives what the pod asks for and fits; the rest is placed by
// the policy, which keeps the node's sum right though the card may be another.
type Tenancy struct {
	Pod       string
	Ask       Ask
	Bound     []Bound
	Annotated Placement
	Leaving   bool
}

// Rank orders tenancies: what is proved first, what is known least last.
func (t *Tenancy) Rank() int {
	switch {
	case len(t.Bound) > 0:
		return 0
	case t.Annotated.Matches(t.Ask):
		return 1
	}
	return 2
}

// Reside writes a tenant down. The reason names what could not be placed; the rest counts.
func (b *Books) Reside(tenant Tenancy, policy Policy) (unplaced Reason) {
	ask := tenant.Ask
	node := site{b.cards, b.links, b.used}
	trial := newTrial(b.cards, b.used)
	placement := Placement{Containers: make([][]Grant, len(ask.Containers))}
	bound := map[string][]Bound{}
	for _, share := range tenant.Bound {
		bound[share.Container] = append(bound[share.Container], share)
	}
	known := make([]bool, len(ask.Containers))
	for at := range ask.Containers {
		c := &ask.Containers[at]
		if shares, ok := bound[c.Name]; ok {
			placement.Containers[at], known[at] = b.enter(trial, c, shares), true
			delete(bound, c.Name)
		}
	}
	matches := tenant.Annotated.Matches(ask)
	for _, at := range order(ask) {
		c := &ask.Containers[at]
		if known[at] || c.Count == 0 {
			continue
		}
		if matches && b.replay(trial, c, tenant.Annotated.Containers[at]) {
			placement.Containers[at] = tenant.Annotated.Containers[at]
			continue
		}
		cards, _ := node.choose(trial, c, ask, policy)
		if len(cards) < c.Count {
			unplaced = noRoom(c, ask)
			continue
		}
		for _, card := range cards {
			trial.give(card, c, c.Share.on(&b.cards[card]))
			placement.Containers[at] = append(placement.Containers[at], trial.grant(card, c.Share))
		}
	}
	for _, shares := range bound { // of containers that the pod doesn't name; real all the same
		placement.Containers = append(placement.Containers, b.enter(trial, &ContainerAsk{Lasting: true}, shares))
	}
	has := holding{placement, trial.loads(), resident, ask.bestEffort()}
	if tenant.Leaving {
		has.state = leaving
	}
	b.write(tenant.Pod, has)
	return unplaced
}

// enter gives a container what it is really bound to, whether it fits or not.
func (b *Books) enter(t *trial, c *ContainerAsk, shares []Bound) []Grant {
	var grants []Grant
	for _, share := range shares {
		card := b.position(share.UUID)
		if card < 0 {
			continue // a card that is gone has nothing to give out
		}
		use := Share{Cores: share.Cores, MemMiB: share.MemMiB, BestEffort: c.Share.BestEffort}.on(&b.cards[card])
		t.give(card, c, use)
		grants = append(grants, Grant{
			Index: b.cards[card].Index, UUID: share.UUID, MemMiB: share.MemMiB, Cores: share.Cores, Vid: share.Vid,
		})
	}
	return grants
}

// replay gives a container the cards its annotation names, all or none, where their sums allow it.
// Rules of who may join whom are not asked again: they were when the pod came, and others have come
// since. An unhealthy card still holds what runs on it.
func (b *Books) replay(t *trial, c *ContainerAsk, grants []Grant) bool {
	cards := make([]int, 0, len(grants))
	for _, grant := range grants {
		card := b.position(grant.UUID)
		if card < 0 || slices.Contains(cards, card) ||
			!t.cards[card].holds(t.met(card, c).plus(c.Share.on(&t.cards[card]))) {
			return false
		}
		cards = append(cards, card)
	}
	for _, card := range cards {
		t.give(card, c, c.Share.on(&b.cards[card]))
	}
	return true
}

func (b *Books) position(uuid string) int {
	for i := range b.cards {
		if b.cards[i].UUID == uuid {
			return i
		}
	}
	return -1
}

// vidSet holds the virtual ids in use on a card. Ids beyond it are nobody's business: the lowest
// free one is always far below.
type vidSet [4]uint64

func (v *vidSet) has(vid int) bool { return vid < 64*len(v) && v[vid/64]&(1<<(vid%64)) != 0 }

func (v *vidSet) set(vid int) {
	if vid < 64*len(v) {
		v[vid/64] |= 1 << (vid % 64)
	}
}

func (v *vidSet) clear(vid int) {
	if vid < 64*len(v) {
		v[vid/64] &^= 1 << (vid % 64)
	}
}

func (v *vidSet) lowestFree() int {
	for i, word := range v {
		if word != ^uint64(0) {
			return 64*i + bits.TrailingZeros64(^word)
		}
	}
	return 64 * len(v)
}

// number gives each grant the virtual id it wishes, or the lowest free one.
func (b *Books) number(p Placement) Placement {
	numbered := Placement{Containers: make([][]Grant, len(p.Containers)), Score: p.Score}
	for i, grants := range p.Containers {
		numbered.Containers[i] = slices.Clone(grants)
		for j := range grants {
			vids := &b.vids[b.position(grants[j].UUID)]
			vid := grants[j].Vid
			if vids.has(vid) {
				vid = vids.lowestFree()
			}
			vids.set(vid)
			numbered.Containers[i][j].Vid = vid
		}
	}
	return numbered
}

func (b *Books) unnumber(p Placement) {
	for _, grants := range p.Containers {
		for _, grant := range grants {
			b.vids[b.position(grant.UUID)].clear(grant.Vid)
		}
	}
}

// CoresTaken is the percentage of compute reserved on each card.
func (b *Books) CoresTaken() []int {
	cores := make([]int, len(b.cards))
	for i := range cores {
		cores[i] = b.used[i].cores
	}
	return cores
}

// String shows what is taken of each card, for tests and traces.
func (b *Books) String() string {
	return fmt.Sprint(b.used, b.leaving, b.coming, b.vids)
}
