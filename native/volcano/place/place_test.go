// SPDX-License-Identifier: Apache-2.0

package place

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// used is a card of 40 GiB with the given tenants.
type used []Share

// node opens the books of cards of 40 GiB; each tenant is a pod of its own, "card.number".
func node(links Links, cards ...used) *Books {
	described := make([]Card, len(cards))
	for i := range cards {
		described[i] = Card{
			Index: i, UUID: fmt.Sprintf("GPU-%d", i), Type: "GPU-A100", Slots: 20, MemMiB: 40960, Healthy: true,
		}
	}
	books := NewBooks(described, links)
	for i, tenants := range cards {
		for j, share := range tenants {
			sit(books, fmt.Sprintf("%d.%d", i, j), i, share)
		}
	}
	return books
}

// sit binds a pod with one share to a card, as the device plugin would have.
func sit(b *Books, pod string, card int, share Share) {
	b.Reside(Tenancy{
		Pod: pod, Ask: Ask{Containers: []ContainerAsk{{Name: "main", Count: 1, Share: share}}},
		Bound: []Bound{{
			Pod: pod, Container: "main", UUID: b.cards[card].UUID, Vid: len(b.own),
			Cores: share.Cores, MemMiB: share.memoryOn(&b.cards[card]),
		}},
	}, Binpack)
}

func change(b *Books, card int, edit func(*Card)) *Books {
	edit(&b.cards[card])
	return b
}

// instances makes these cards MIG instances.
func instances(b *Books, cards ...int) *Books {
	for _, card := range cards {
		change(b, card, func(c *Card) { c.UUID = fmt.Sprintf("MIG-%d", card) })
	}
	return b
}

func sick(c *Card) { c.Healthy = false }

func asks(containers ...ContainerAsk) Ask { return Ask{Containers: containers} }

func one(cores int, memMiB int64) Ask { return several(1, cores, memMiB) }

func several(count, cores int, memMiB int64) Ask {
	return asks(ContainerAsk{Name: "main", Count: count, Share: Share{Cores: cores, MemMiB: memMiB}})
}

func bestEffort(memMiB int64) Ask {
	return asks(ContainerAsk{Name: "main", Count: 1, Share: Share{MemMiB: memMiB, BestEffort: true}})
}

func (a Ask) linkedBy(least int) Ask     { a.Bandwidth = least; return a }
func (a Ask) of(models ...string) Ask    { a.Models = models; return a }
func (a Ask) choosing(policy string) Ask { a.Policy = policy; return a }
func idx(cards ...[]int) [][]int         { return cards }
func guaranteed(cores int) Share         { return Share{Cores: cores, MemMiB: 1024} }
func idle(memMiB int64) Share            { return Share{MemMiB: memMiB, BestEffort: true} }
func passing(name string, s Share) ContainerAsk {
	return ContainerAsk{Name: name, Count: 1, Share: s, Passing: true}
}

func indexes(p Placement) [][]int {
	chosen := make([][]int, len(p.Containers))
	for i, grants := range p.Containers {
		for _, grant := range grants {
			chosen[i] = append(chosen[i], grant.Index)
		}
	}
	return chosen
}

// pairs links cards 0-1, 2-3, … by NV12 and all others by SYS.
func pairs(cards int) Links {
	links := make(Links, cards)
	for i := range links {
		links[i] = make([]int, cards)
		for j := range links[i] {
			switch {
			case i/2 == j/2 && i != j:
				links[i][j] = 170
			case i != j:
				links[i][j] = 10
			}
		}
	}
	return links
}

func TestPlace(t *testing.T) {
	whole := Share{Cores: 100}
	cases := map[string]struct {
		node   *Books
		ask    Ask
		policy Policy
		want   [][]int
		reason Reason
	}{
		"binpack joins the fullest card that fits": {
			node: node(nil, used{}, used{guaranteed(60)}, used{guaranteed(90)}),
			ask:  one(20, 3072), policy: Binpack, want: idx([]int{1}),
		},
		"spread takes the emptiest card": {
			node: node(nil, used{guaranteed(10)}, used{}, used{guaranteed(60)}),
			ask:  one(20, 3072), policy: Spread, want: idx([]int{1}),
		},
		"a pod's own policy goes before the scheduler's": {
			node: node(nil, used{guaranteed(10)}, used{}),
			ask:  one(20, 3072).choosing("spread"), policy: Binpack, want: idx([]int{1}),
		},
		"equal cards are taken in order": {
			node: node(nil, used{}, used{}), ask: one(20, 3072), policy: Binpack, want: idx([]int{0}),
		},
		"memory counts as much as cores": {
			node: node(nil, used{guaranteed(50)}, used{{Cores: 10, MemMiB: 36000}}),
			ask:  one(20, 3072), policy: Binpack, want: idx([]int{1}),
		},
		"no card with cores left": {
			node: node(nil, used{guaranteed(90)}), ask: one(20, 3072), policy: Binpack,
			reason: "no healthy card has 20 % cores and 3072 MiB free",
		},
		"no card with memory left": {
			node: node(nil, used{{Cores: 10, MemMiB: 40000}}), ask: one(20, 3072), policy: Binpack,
			reason: "no healthy card has 20 % cores and 3072 MiB free",
		},
		"a sick card is no card": {
			node: change(node(nil, used{}), 0, sick), ask: one(20, 3072), policy: Binpack,
			reason: "no healthy card has 20 % cores and 3072 MiB free",
		},
		"a node without cards": {
			node: node(nil), ask: one(20, 3072), policy: Binpack,
			reason: "no healthy card has 20 % cores and 3072 MiB free",
		},
		"only a card of the model will do, whatever case it is written in": {
			node: change(node(nil, used{}, used{}), 1, func(c *Card) { c.Type = "GPU-H100" }),
			ask:  one(20, 3072).of("V100", "h100"), policy: Binpack, want: idx([]int{1}),
		},
		"no card of the model": {
			node: node(nil, used{}), ask: one(20, 3072).of("V100", "H100"), policy: Binpack,
			reason: "no healthy V100 or H100 card has 20 % cores and 3072 MiB free",
		},
		"several slices of a container lie on different cards": {
			node: node(nil, used{}, used{}), policy: Binpack, ask: several(2, 20, 1024), want: idx([]int{0, 1}),
		},
		"a MIG instance is taken like a card": {
			node: instances(node(nil, used{}), 0), policy: Binpack, ask: one(20, 1024), want: idx([]int{0}),
		},
		"and is never one of several": {
			node: instances(node(nil, used{}, used{}, used{}), 0, 1), policy: Binpack, ask: several(2, 20, 1024),
			reason: "fewer than 2 healthy cards have 20 % cores and 1024 MiB free",
		},
		"nor a member of a group": {
			node: instances(node(pairs(4), used{}, used{}, used{}, used{}), 0), policy: Topology, ask: several(2, 20, 1024),
			want: idx([]int{2, 3}),
		},
		"more slices than cards": {
			node: node(nil, used{}), policy: Binpack, ask: several(2, 20, 1024),
			reason: "fewer than 2 healthy cards have 20 % cores and 1024 MiB free",
		},
		"containers of a pod may share a card, and keep their order": {
			node: node(nil, used{}, used{}), policy: Binpack,
			ask: asks(
				ContainerAsk{Name: "small", Count: 1, Share: guaranteed(20)},
				ContainerAsk{Name: "sidecar"},
				ContainerAsk{Name: "large", Count: 1, Share: guaranteed(80)},
			),
			want: idx([]int{0}, nil, []int{0}),
		},
		"the largest container chooses first": {
			node: node(nil, used{guaranteed(30)}, used{}), policy: Spread,
			ask: asks(
				ContainerAsk{Name: "small", Count: 1, Share: guaranteed(20)},
				ContainerAsk{Name: "large", Count: 1, Share: guaranteed(90)},
			),
			want: idx([]int{0}, []int{1}),
		},
		"a whole card wants an empty one": {
			node: node(nil, used{{MemMiB: 1024}}, used{}), policy: Binpack,
			ask: asks(ContainerAsk{Count: 1, Share: whole}), want: idx([]int{1}),
		},
		"a whole card beside slices of the same pod": {
			node: node(nil, used{guaranteed(50)}, used{}), policy: Binpack,
			ask:  asks(ContainerAsk{Count: 1, Share: guaranteed(20)}, ContainerAsk{Count: 1, Share: whole}),
			want: idx([]int{0}, []int{1}),
		},
		"a whole card is left alone by shares without limit": {
			node: node(nil, used{guaranteed(100)}), policy: Binpack, ask: one(0, 1024),
			reason: "no healthy card has unlimited cores and 1024 MiB free",
		},
		"cores alone take all memory": {
			node: node(nil, used{guaranteed(10)}), policy: Binpack, ask: one(20, 0),
			reason: "no healthy card has 20 % cores and all memory free",
		},
		"no more tenants than slots": {
			node: change(node(nil, used{guaranteed(1), guaranteed(1)}), 0, func(c *Card) { c.Slots = 2 }),
			ask:  one(20, 3072), policy: Binpack,
			reason: "no healthy card has 20 % cores and 3072 MiB free",
		},
		"best-effort reserves memory only": {
			node: node(nil, used{guaranteed(60)}), policy: Binpack, ask: bestEffort(30000), want: idx([]int{0}),
		},
		"best-effort finds no memory": {
			node: node(nil, used{guaranteed(60)}), policy: Binpack, ask: bestEffort(40960),
			reason: "no healthy card has room for a best-effort share and 40960 MiB free",
		},
		"without mixing, best-effort shares gather on the fullest card": {
			node: node(nil, used{guaranteed(20)}, used{idle(30000)}), policy: Binpack, ask: bestEffort(1024), want: idx([]int{1}),
		},
		"mixing puts best-effort beside guaranteed, not beside best-effort": {
			node: node(nil, used{}, used{idle(30000)}, used{guaranteed(20)}), policy: Binpack.Mixing(),
			ask: bestEffort(1024), want: idx([]int{2}),
		},
		"mixing leaves guaranteed shares to the policy": {
			node: node(nil, used{idle(30000)}, used{guaranteed(20)}), policy: Binpack.Mixing(),
			ask: one(10, 1024), want: idx([]int{0}),
		},
		"topology takes the pair that is linked": {
			node: node(pairs(4), used{guaranteed(10)}, used{}, used{}, used{}), policy: Topology,
			ask: asks(ContainerAsk{Count: 2, Share: whole}), want: idx([]int{2, 3}),
		},
		"binpack does not look at links": {
			node: node(pairs(4), used{guaranteed(10)}, used{}, used{}, used{}), policy: Binpack,
			ask: asks(ContainerAsk{Count: 2, Share: whole}), want: idx([]int{1, 2}),
		},
		"topology groups slices too": {
			node: node(pairs(4), used{guaranteed(90)}, used{guaranteed(50)}, used{}, used{guaranteed(10)}), policy: Topology,
			ask: several(2, 20, 1024), want: idx([]int{2, 3}),
		},
		"of equally linked groups the fuller": {
			node: node(pairs(4), used{}, used{}, used{guaranteed(10)}, used{}), policy: Topology,
			ask: several(2, 20, 1024), want: idx([]int{2, 3}),
		},
		"without links, topology stays in one NUMA node": {
			node: func() *Books {
				b := node(nil, used{}, used{}, used{}, used{})
				for i := range b.cards {
					b.cards[i].NUMA = i % 2
				}
				return b
			}(),
			policy: Topology, ask: several(2, 20, 1024), want: idx([]int{0, 2}),
		},
		"a single whole card breaks no pair that is free": {
			node: node(pairs(4), used{}, used{}, used{}, used{guaranteed(10)}), policy: Topology,
			ask: asks(ContainerAsk{Count: 1, Share: whole}), want: idx([]int{2}),
		},
		"intra-bandwidth holds with every policy": {
			node: node(pairs(4), used{guaranteed(10)}, used{}, used{}, used{}), policy: Binpack,
			ask: asks(ContainerAsk{Count: 2, Share: whole}).linkedBy(170), want: idx([]int{2, 3}),
		},
		"no group linked well enough": {
			node: node(pairs(4), used{}, used{}, used{}, used{}), policy: Topology,
			ask:    several(3, 20, 1024).linkedBy(50),
			reason: "fewer than 3 healthy cards linked by 50 or better have 20 % cores and 1024 MiB free",
		},
		"links that nobody knows are no links": {
			node: node(nil, used{}, used{}), policy: Topology, ask: several(2, 20, 1024).linkedBy(1),
			reason: "fewer than 2 healthy cards linked by 1 or better have 20 % cores and 1024 MiB free",
		},
		"an init container that passes takes its turn on the pod's own share": {
			node: node(nil, used{guaranteed(70)}, used{}), policy: Binpack,
			ask:  asks(ContainerAsk{Count: 1, Share: guaranteed(30)}, passing("init", guaranteed(30))),
			want: idx([]int{0}, []int{0}),
		},
		"an init container larger than the pod goes where there is room for it": {
			node: node(nil, used{guaranteed(70)}, used{}), policy: Binpack,
			ask:  asks(ContainerAsk{Count: 1, Share: guaranteed(30)}, passing("init", guaranteed(60))),
			want: idx([]int{0}, []int{1}),
		},
		"an init container that lasts needs its own room": {
			node: node(nil, used{guaranteed(70)}), policy: Binpack,
			ask: asks(ContainerAsk{Name: "a", Count: 1, Share: guaranteed(30)},
				ContainerAsk{Name: "b", Count: 1, Share: guaranteed(30), Lasting: true}),
			reason: "no healthy card has 30 % cores and 1024 MiB free",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			before := c.node.String()
			placement, reason := c.node.Place(c.ask, c.policy)
			if reason != c.reason {
				t.Fatalf("reason %q, want %q", reason, c.reason)
			}
			if reason == "" && !reflect.DeepEqual(indexes(placement), c.want) {
				t.Errorf("cards %v, want %v", indexes(placement), c.want)
			}
			if c.node.String() != before {
				t.Error("the books were changed; Place only asks")
			}
		})
	}
}

func TestWholeCardGetsItsMemory(t *testing.T) {
	placement, _ := node(nil, used{}).Place(asks(ContainerAsk{Count: 1, Share: Share{Cores: 100}}), Binpack)
	if got := placement.Containers[0][0].MemMiB; got != 40960 {
		t.Errorf("%d MiB, want the card's 40960", got)
	}
}

func TestScoreOrdersNodesAsThePolicySays(t *testing.T) {
	cases := map[string]struct {
		policy        Policy
		ask           Ask
		better, worse *Books
	}{
		"binpack: the fuller node": {
			Binpack, one(20, 3072), node(nil, used{guaranteed(50)}, used{}), node(nil, used{}, used{}),
		},
		"spread: the emptier node": {
			Spread, one(20, 3072), node(nil, used{}, used{}), node(nil, used{guaranteed(50)}, used{}),
		},
		"topology: the better linked node, though emptier": {
			Topology, several(2, 20, 1024), node(pairs(2), used{}, used{}), node(nil, used{guaranteed(70)}, used{guaranteed(70)}),
		},
		"mixing: the node with somebody to join, though emptier": {
			Binpack.Mixing(), bestEffort(1024), node(nil, used{guaranteed(10)}), node(nil, used{idle(30000)}),
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			better, _ := c.better.Place(c.ask, c.policy)
			worse, _ := c.worse.Place(c.ask, c.policy)
			if better.Score <= worse.Score || better.Score > 100 || worse.Score < 0 {
				t.Errorf("%.1f for the better and %.1f for the worse node", better.Score, worse.Score)
			}
		})
	}
}

// Up to 8 candidates the best pair is the best of all pairs, and above that the search still finds
// one that is linked as well as any.
func TestGroupsAreTheBestThereAre(t *testing.T) {
	for _, cards := range []int{4, 8, 16} {
		links := pairs(cards)
		links[cards-1][cards-2], links[cards-2][cards-1] = 230, 230
		placement, reason := node(links, make([]used, cards)...).Place(several(2, 20, 1024), Topology)
		if want := [][]int{{cards - 2, cards - 1}}; reason != "" || !reflect.DeepEqual(indexes(placement), want) {
			t.Errorf("%d cards: %v %s, want %v", cards, indexes(placement), reason, want)
		}
	}
	// Two domains of eight: eight cards must all be of one of them, wherever a search begins.
	domains := make(Links, 16)
	for i := range domains {
		domains[i] = make([]int, 16)
		for j := range domains[i] {
			if domains[i][j] = 10; i/8 == j/8 {
				domains[i][j] = 230
			}
		}
	}
	crowded := make([]used, 16)
	crowded[0] = used{guaranteed(90)}
	placement, _ := node(domains, crowded...).Place(several(8, 20, 1024), Topology)
	if got := fmt.Sprint(indexes(placement)); got != "[[8 9 10 11 12 13 14 15]]" {
		t.Errorf("cards %s, want the domain that is free", got)
	}
}

// The device plugin may say more of a pod than the pod's annotation, and then it is right.
func TestReside(t *testing.T) {
	slice := several(1, 20, 3072)
	annotated := func(card int, cores int) Placement {
		return Placement{Containers: [][]Grant{{{UUID: fmt.Sprintf("GPU-%d", card), MemMiB: 3072, Cores: cores}}}}
	}
	bound := func(pod, container string, card, cores int) Bound {
		return Bound{Pod: pod, Container: container, UUID: fmt.Sprintf("GPU-%d", card), Cores: cores, MemMiB: 3072}
	}
	cases := map[string]struct {
		tenancy  Tenancy
		cores    [2]int
		unplaced Reason
	}{
		"bound as annotated": {
			tenancy: Tenancy{Ask: slice, Annotated: annotated(1, 20), Bound: []Bound{bound("p", "main", 1, 20)}},
			cores:   [2]int{0, 20},
		},
		"bound elsewhere than annotated": {
			tenancy: Tenancy{Ask: slice, Annotated: annotated(0, 20), Bound: []Bound{bound("p", "main", 1, 20)}},
			cores:   [2]int{0, 20},
		},
		"bound with more than it asks for (resized on the host)": {
			tenancy: Tenancy{Ask: slice, Bound: []Bound{bound("p", "main", 1, 50)}}, cores: [2]int{0, 50},
		},
		"bound to a card that is gone": {
			tenancy: Tenancy{Ask: slice, Bound: []Bound{bound("p", "main", 7, 20)}}, cores: [2]int{0, 0},
		},
		"not bound yet, annotated": {
			tenancy: Tenancy{Ask: slice, Annotated: annotated(1, 20)}, cores: [2]int{0, 20},
		},
		"an annotation that claims more than the ask is not believed": {
			tenancy: Tenancy{Ask: slice, Annotated: annotated(1, 90)}, cores: [2]int{20, 0},
		},
		"neither bound nor annotated": {
			tenancy: Tenancy{Ask: slice}, cores: [2]int{20, 0},
		},
		"one container bound, the other not yet": {
			tenancy: Tenancy{
				Ask: asks(ContainerAsk{Name: "main", Count: 1, Share: guaranteed(20)},
					ContainerAsk{Name: "other", Count: 1, Share: guaranteed(30)}),
				Bound: []Bound{bound("p", "main", 1, 20)},
			},
			cores: [2]int{0, 50},
		},
		"a slice of the host": {
			tenancy: Tenancy{Bound: []Bound{bound(HostPod, "render", 1, 40)}}, cores: [2]int{0, 40},
		},
		"more than there is": {
			tenancy: Tenancy{Ask: several(3, 20, 1024)}, cores: [2]int{0, 0},
			unplaced: "fewer than 3 healthy cards have 20 % cores and 1024 MiB free",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			books := node(nil, used{}, used{})
			c.tenancy.Pod = "p"
			if unplaced := books.Reside(c.tenancy, Binpack); unplaced != c.unplaced {
				t.Errorf("unplaced %q, want %q", unplaced, c.unplaced)
			}
			if got := [2]int{books.used[0].cores, books.used[1].cores}; got != c.cores {
				t.Errorf("cores taken %v, want %v", got, c.cores)
			}
		})
	}
}

func TestRoomThatIsLeftIsPromisedOnce(t *testing.T) {
	books := node(nil, used{guaranteed(80)})
	books.Leave("0.0")
	if _, reason := books.Place(one(50, 1024), Binpack); reason == "" {
		t.Fatal("a leaving pod still holds its card")
	}
	if reason := books.Expect("next", one(50, 1024), Binpack); reason != "" {
		t.Fatal(reason)
	}
	if reason := books.Expect("third", one(60, 1024), Binpack); reason == "" {
		t.Error("the same room was promised twice")
	}
	if _, reason := books.Place(one(20, 1024), Binpack); reason != "" {
		t.Errorf("what is free now and not promised is refused: %s", reason)
	}
	books.Release("0.0")
	if _, reason := books.Place(one(60, 1024), Binpack); reason == "" {
		t.Error("promised room was given to somebody else")
	}
	books.Release("next")
	if _, reason := books.Place(one(100, 1024), Binpack); reason != "" {
		t.Errorf("the card is not free again: %s", reason)
	}
}

func TestVictims(t *testing.T) {
	named := func(priorities map[string]int32) (candidates []Candidate) {
		for pod, priority := range priorities {
			candidates = append(candidates, Candidate{pod, priority})
		}
		return candidates
	}
	same := map[string]int32{"0.0": 1, "0.1": 1, "0.2": 1, "1.0": 1, "1.1": 1, "1.2": 1}
	cases := map[string]struct {
		node   *Books
		ask    Ask
		policy Policy
		who    map[string]int32
		want   string
	}{
		"all on one card": {
			node: node(nil, used{guaranteed(40), guaranteed(40)}, used{guaranteed(40), guaranteed(40)}),
			ask:  one(100, 1024), who: same, want: "[1.0 1.1]",
		},
		"the card with fewer victims": {
			node: node(nil, used{guaranteed(30), guaranteed(30), guaranteed(30)}, used{guaranteed(90)}),
			ask:  one(80, 1024), who: same, want: "[1.0]",
		},
		"no more than needed": {
			node: node(nil, used{guaranteed(50), guaranteed(25), guaranteed(25)}),
			ask:  one(25, 1024), who: same, want: "[0.2]",
		},
		"one large rather than two small": {
			node: node(nil, used{guaranteed(25), guaranteed(25), guaranteed(50)}),
			ask:  one(50, 1024), who: same, want: "[0.2]",
		},
		"the less important card, though more victims": {
			node: node(nil, used{guaranteed(50), guaranteed(50)}, used{guaranteed(100)}), ask: one(100, 1024),
			who: map[string]int32{"0.0": 1, "0.1": 1, "1.0": 5}, want: "[0.0 0.1]",
		},
		"best-effort goes first": {
			node: node(nil, used{{Cores: 50, MemMiB: 20480}, idle(20480)}), ask: one(10, 20480),
			who: same, want: "[0.1]",
		},
		"what may not leave can't help": {
			node: node(nil, used{guaranteed(50), guaranteed(50)}), ask: one(100, 1024),
			who: map[string]int32{"0.0": 1}, want: "[]",
		},
		"nobody need leave": {
			node: node(nil, used{guaranteed(50)}), ask: one(50, 1024), who: same, want: "[]",
		},
		"a linked pair is cleared, not any two cards": {
			node: node(pairs(4), used{}, used{guaranteed(50)}, used{}, used{guaranteed(50)}), policy: Topology,
			ask: several(2, 100, 0).linkedBy(170), who: map[string]int32{"1.0": 3, "3.0": 2}, want: "[3.0]",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if c.policy.Name == "" {
				c.policy = Binpack
			}
			if got := fmt.Sprint(c.node.Victims(c.ask, c.policy, named(c.who))); got != c.want {
				t.Errorf("victims %s, want %s", got, c.want)
			}
		})
	}
}

func TestReasonsAreTheSameOnEveryNode(t *testing.T) {
	reasons := map[Reason]bool{}
	for _, books := range []*Books{node(nil), node(nil, used{guaranteed(90)}), change(node(nil, used{}), 0, sick)} {
		_, reason := books.Place(one(20, 3072), Binpack)
		reasons[reason] = true
	}
	if len(reasons) != 1 {
		t.Errorf("%v; Volcano counts nodes by equal texts", reasons)
	}
}

func TestPoliciesAreNamedInMessages(t *testing.T) {
	if PolicyNames() != "binpack, spread or topology" {
		t.Error(PolicyNames())
	}
	for _, name := range []string{"binpack", "spread", "topology"} {
		if policy, ok := PolicyByName(name); !ok || policy.Name != name || !strings.Contains(PolicyNames(), name) {
			t.Errorf("%s: %v %v", name, policy.Name, ok)
		}
	}
}

// The cost of one decision grows with the cards, not with their square.
func BenchmarkPlace(b *testing.B) {
	for _, count := range []int{8, 64, 512} {
		cards := make([]used, count)
		for i := range cards {
			cards[i] = used{guaranteed(i % 80)}
		}
		books := node(nil, cards...)
		b.Run(fmt.Sprintf("cards=%d", count), func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				books.Place(one(20, 3072), Binpack)
			}
		})
	}
}
