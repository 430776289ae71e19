// SPDX-License-Identifier: Apache-2.0

package place

import (
	"fmt"
	"math/rand"
	"reflect"
	"strings"
	"testing"
)

// card40 is a healthy card of 40 GiB with the given tenants.
func card40(index int, tenants ...Share) Card {
	card := Card{
		Index: index, UUID: fmt.Sprintf("GPU-%d", index), Type: "GPU-A100", Slots: 20,
		MemMiB: 40960, Healthy: true, tenants: map[int]struct{}{},
	}
	for _, share := range tenants {
		card.take(share, 0)
	}
	return card
}

func sick(card Card) Card {
	card.Healthy = false
	return card
}

func one(cores int, memMiB int64) Ask {
	return Ask{{Name: "main", Count: 1, Share: Share{Cores: cores, MemMiB: memMiB}}}
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

func TestPlace(t *testing.T) {
	whole := Share{Cores: 100}
	cases := map[string]struct {
		cards  []Card
		ask    Ask
		policy Policy
		want   [][]int
		reason Reason
	}{
		"binpack joins the fullest card that fits": {
			cards: []Card{card40(0), card40(1, Share{60, 1024}), card40(2, Share{90, 1024})},
			ask:   one(20, 3072), policy: Binpack, want: [][]int{{1}},
		},
		"spread takes the emptiest card": {
			cards: []Card{card40(0, Share{10, 1024}), card40(1), card40(2, Share{60, 1024})},
			ask:   one(20, 3072), policy: Spread, want: [][]int{{1}},
		},
		"equal cards are taken in order": {
			cards: []Card{card40(0), card40(1)}, ask: one(20, 3072), policy: Binpack, want: [][]int{{0}},
		},
		"memory counts as much as cores": {
			cards: []Card{card40(0, Share{50, 1024}), card40(1, Share{10, 36000})},
			ask:   one(20, 3072), policy: Binpack, want: [][]int{{1}},
		},
		"no card with cores left": {
			cards: []Card{card40(0, Share{90, 1024})}, ask: one(20, 3072), policy: Binpack,
			reason: "no healthy card has 20 % cores and 3072 MiB free",
		},
		"no card with memory left": {
			cards: []Card{card40(0, Share{10, 40000})}, ask: one(20, 3072), policy: Binpack,
			reason: "no healthy card has 20 % cores and 3072 MiB free",
		},
		"a sick card is no card": {
			cards: []Card{sick(card40(0))}, ask: one(20, 3072), policy: Binpack,
			reason: "no healthy card has 20 % cores and 3072 MiB free",
		},
		"a node without cards": {
			ask: one(20, 3072), policy: Binpack,
			reason: "no healthy card has 20 % cores and 3072 MiB free",
		},
		"several virtual cards of a container lie on different cards": {
			cards: []Card{card40(0), card40(1)}, policy: Binpack,
			ask:  Ask{{Name: "main", Count: 2, Share: Share{20, 1024}}},
			want: [][]int{{0, 1}},
		},
		"more virtual cards than cards": {
			cards: []Card{card40(0)}, policy: Binpack,
			ask:    Ask{{Name: "main", Count: 2, Share: Share{20, 1024}}},
			reason: "fewer than 2 healthy cards have 20 % cores and 1024 MiB free",
		},
		"containers of a pod may share a card, and keep their order": {
			cards: []Card{card40(0), card40(1)}, policy: Binpack,
			ask: Ask{
				{Name: "small", Count: 1, Share: Share{20, 1024}},
				{Name: "sidecar"},
				{Name: "large", Count: 1, Share: Share{80, 1024}},
			},
			want: [][]int{{0}, nil, {0}},
		},
		"the largest container chooses first": {
			cards: []Card{card40(0, Share{30, 1024}), card40(1)}, policy: Spread,
			ask: Ask{
				{Name: "small", Count: 1, Share: Share{20, 1024}},
				{Name: "large", Count: 1, Share: Share{90, 1024}},
			},
			want: [][]int{{0}, {1}},
		},
		"a whole card wants an empty one": {
			cards: []Card{card40(0, Share{0, 1024}), card40(1)}, policy: Binpack,
			ask: Ask{{Name: "main", Count: 1, Share: whole}}, want: [][]int{{1}},
		},
		"a whole card is left alone by shares without limit": {
			cards: []Card{card40(0, Share{100, 1024})}, policy: Binpack, ask: one(0, 1024),
			reason: "no healthy card has unlimited cores and 1024 MiB free",
		},
		"cores alone take all memory": {
			cards: []Card{card40(0, Share{10, 1024})}, policy: Binpack, ask: one(20, 0),
			reason: "no healthy card has 20 % cores and all memory free",
		},
		"no more tenants than slots": {
			cards: func() []Card {
				card := card40(0, Share{1, 1}, Share{1, 1})
				card.Slots = 2
				return []Card{card}
			}(),
			ask: one(20, 3072), policy: Binpack,
			reason: "no healthy card has 20 % cores and 3072 MiB free",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			before := fmt.Sprint(c.cards)
			placement, reason := Place(c.cards, c.ask, c.policy)
			if reason != c.reason {
				t.Fatalf("reason %q, want %q", reason, c.reason)
			}
			if reason == "" && !reflect.DeepEqual(indexes(placement), c.want) {
				t.Errorf("cards %v, want %v", indexes(placement), c.want)
			}
			if fmt.Sprint(c.cards) != before {
				t.Error("the cards were changed; Place must work on a copy")
			}
		})
	}
}

func TestWholeCardGetsItsMemory(t *testing.T) {
	placement, _ := Place([]Card{card40(0)}, Ask{{Count: 1, Share: Share{Cores: 100}}}, Binpack)
	if got := placement.Containers[0][0].MemMiB; got != 40960 {
		t.Errorf("%d MiB, want the card's 40960", got)
	}
}

func TestScoreOrdersNodesAsThePolicySays(t *testing.T) {
	empty := []Card{card40(0), card40(1)}
	used := []Card{card40(0, Share{50, 1024}), card40(1)}
	for policy, fullerWins := range map[string]bool{"binpack": true, "spread": false} {
		chosen, _ := PolicyByName(policy)
		onEmpty, _ := Place(empty, one(20, 3072), chosen)
		onUsed, _ := Place(used, one(20, 3072), chosen)
		if (onUsed.Score > onEmpty.Score) != fullerWins || onUsed.Score == onEmpty.Score {
			t.Errorf("%s: used node %.1f, empty node %.1f", policy, onUsed.Score, onEmpty.Score)
		}
		for _, score := range []float64{onEmpty.Score, onUsed.Score} {
			if score < 0 || score > 100 {
				t.Errorf("%s: score %.1f is outside 0 to 100", policy, score)
			}
		}
	}
}

// Whatever comes and goes, no card is over its cores, memory or slots, a container's grants lie on
// different cards, and when all have gone the cards are as they were.
func TestRandomHistoriesNeverOvercommitACard(t *testing.T) {
	for seed := range int64(200) {
		random := rand.New(rand.NewSource(seed))
		cards := []Card{card40(0), card40(1), card40(2), sick(card40(3))}
		fresh := fmt.Sprint(cards)
		policy := []Policy{Binpack, Spread}[random.Intn(2)]
		var placed []Placement
		for range 60 {
			if len(placed) > 0 && random.Intn(3) == 0 {
				gone := random.Intn(len(placed))
				Release(cards, placed[gone])
				placed = append(placed[:gone], placed[gone+1:]...)
				continue
			}
			ask := randomAsk(random)
			placement, reason := Place(cards, ask, policy)
			if reason != "" {
				continue
			}
			settled, err := Commit(cards, placement)
			if err != nil || !settled.Matches(ask) {
				t.Fatalf("seed %d: what Place chose was not committed: %v", seed, err)
			}
			placed = append(placed, settled)
			check(t, seed, cards, placed)
		}
		for _, placement := range placed {
			Release(cards, placement)
		}
		if after := fmt.Sprint(cards); after != fresh {
			t.Fatalf("seed %d: after all had gone the cards were %s", seed, after)
		}
	}
}

func randomAsk(random *rand.Rand) Ask {
	ask := make(Ask, 1+random.Intn(3))
	for i := range ask {
		ask[i] = ContainerAsk{
			Count: random.Intn(3),
			Share: Share{Cores: random.Intn(21) * 5, MemMiB: int64(random.Intn(20)) * 1024},
		}
	}
	return ask
}

// check sums what was granted by itself, without the cards' own books.
func check(t *testing.T, seed int64, cards []Card, placed []Placement) {
	t.Helper()
	cores, memory, tenants := map[string]int{}, map[string]int64{}, map[string]map[int]bool{}
	for _, placement := range placed {
		for _, grants := range placement.Containers {
			mine := map[string]bool{}
			for _, g := range grants {
				cores[g.UUID] += g.Cores
				memory[g.UUID] += g.MemMiB
				if tenants[g.UUID] == nil {
					tenants[g.UUID] = map[int]bool{}
				}
				if tenants[g.UUID][g.Vid] || mine[g.UUID] {
					t.Fatalf("seed %d: %v given twice", seed, g)
				}
				tenants[g.UUID][g.Vid], mine[g.UUID] = true, true
			}
		}
	}
	for _, card := range cards {
		over := cores[card.UUID] > FullCores || memory[card.UUID] > card.MemMiB ||
			len(tenants[card.UUID]) > card.Slots
		if over || !card.Healthy && len(tenants[card.UUID]) > 0 {
			t.Fatalf("seed %d: card %d has %d cores, %d MiB, %d tenants", seed, card.Index,
				cores[card.UUID], memory[card.UUID], len(tenants[card.UUID]))
		}
	}
}

func TestCommitIsAllOrNothing(t *testing.T) {
	cards := []Card{card40(0), card40(1, Share{100, 1024})}
	before := fmt.Sprint(cards)
	_, err := Commit(cards, Placement{Containers: [][]Grant{
		{{UUID: "GPU-0", Cores: 50, MemMiB: 1024}, {UUID: "GPU-1", Cores: 50, MemMiB: 1024}},
	}})
	if err == nil || !strings.Contains(err.Error(), "GPU-1 has no 50 cores") {
		t.Errorf("error %v, want the full card named", err)
	}
	if after := fmt.Sprint(cards); after != before {
		t.Errorf("a refused commit left %s", after)
	}
}

func refusedSlices(number, cores, memoryGiB int) string {
	return fmt.Sprintf("container c asks for vgpu-number %d together with vgpu-cores %d and "+
		"vgpu-memory-1Gi %d; several slices in one container are not supported: ask for one "+
		"(vgpu-number: 1), or for whole cards by vgpu-number alone", number, cores, memoryGiB)
}

func TestFromTotals(t *testing.T) {
	cases := map[string]struct {
		totals Totals
		want   ContainerAsk
		reason string
	}{
		"the document's slice":  {Totals{1, 20, 3}, ContainerAsk{"c", 1, Share{20, 3072}}, ""},
		"number alone is whole": {Totals{2, 0, 0}, ContainerAsk{"c", 2, Share{100, 0}}, ""},
		"cores alone":           {Totals{1, 20, 0}, ContainerAsk{"c", 1, Share{20, 0}}, ""},
		"memory alone":          {Totals{1, 0, 3}, ContainerAsk{"c", 1, Share{0, 3072}}, ""},
		"nothing":               {Totals{}, ContainerAsk{Name: "c"}, ""},
		"cores without a number": {
			Totals{0, 20, 0}, ContainerAsk{Name: "c"},
			"container c asks for vgpu-cores 20 and vgpu-memory-1Gi 0 without vgpu-number; add vgpu-number: 1",
		},
		"several slices, evenly": {Totals{2, 40, 6}, ContainerAsk{Name: "c", Count: 2}, refusedSlices(2, 40, 6)},
		"several of memory only": {Totals{2, 0, 6}, ContainerAsk{Name: "c", Count: 2}, refusedSlices(2, 0, 6)},
		"several of cores only":  {Totals{3, 20, 0}, ContainerAsk{Name: "c", Count: 3}, refusedSlices(3, 20, 0)},
		"more than a card": {
			Totals{1, 120, 3}, ContainerAsk{Name: "c", Count: 1},
			"container c asks for vgpu-cores 120 on one card; ask for at most 100",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, reason := FromTotals("c", c.totals)
			if got != c.want || string(reason) != c.reason {
				t.Errorf("%v %q, want %v %q", got, reason, c.want, c.reason)
			}
		})
	}
}

// The cost of one decision grows with the cards, not with their square.
func BenchmarkPlace(b *testing.B) {
	for _, count := range []int{8, 64, 512} {
		cards := make([]Card, count)
		for i := range cards {
			cards[i] = card40(i, Share{i % 80, 1024})
		}
		b.Run(fmt.Sprintf("cards=%d", count), func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				Place(cards, one(20, 3072), Binpack)
			}
		})
	}
}
