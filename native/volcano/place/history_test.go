// SPDX-License-Identifier: Apache-2.0

package place

import (
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"testing"
)

// history is a random life of one node: pods come, are promised room, are evicted or stay, and go.
type history struct {
	random *rand.Rand
	books  *Books
	policy Policy
	pods   map[string]Ask
	log    []string
}

func newHistory(seed int64) *history {
	random := rand.New(rand.NewSource(seed))
	return &history{
		random: random, books: change(node(pairs(6), make([]used, 6)...), 5, sick),
		policy: []Policy{Binpack, Spread, Topology, Binpack.Mixing()}[random.Intn(4)], pods: map[string]Ask{},
	}
}

func (h *history) names() []string {
	names := make([]string, 0, len(h.pods))
	for name := range h.pods {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (h *history) step(number int) {
	names := h.names()
	pick := func() string { return names[h.random.Intn(len(names))] }
	roll := h.random.Intn(10)
	switch name := fmt.Sprintf("pod-%d", number); {
	case roll < 5 || len(names) == 0:
		ask := h.ask()
		placement, reason := h.books.Give(name, ask, h.policy)
		if reason == "" {
			h.pods[name] = ask
		}
		h.log = append(h.log, fmt.Sprint(name, placement, reason))
	case roll == 5:
		ask := h.ask()
		if h.books.Expect(name, ask, h.policy) == "" {
			h.pods[name] = ask
		}
	case roll == 6:
		h.books.Leave(pick())
	case roll == 7:
		// Stay may break what was promised on a pod's leaving, so it comes with the promises' end,
		// as Volcano discards a statement from its end.
		for _, other := range names {
			if has, _ := h.books.find(other); has.state == coming {
				h.books.Release(other)
				delete(h.pods, other)
			}
		}
		for _, other := range names {
			h.books.Stay(other)
		}
	default:
		gone := pick()
		h.books.Release(gone)
		delete(h.pods, gone)
	}
}

func (h *history) ask() Ask {
	ask := Ask{Containers: make([]ContainerAsk, 1+h.random.Intn(3)), Bandwidth: []int{0, 0, 0, 100}[h.random.Intn(4)]}
	for i := range ask.Containers {
		c := &ask.Containers[i]
		c.Name, c.Count = fmt.Sprint("c", i), h.random.Intn(3)
		c.Share = Share{Cores: h.random.Intn(21) * 5, MemMiB: int64(1+h.random.Intn(20)) * 1024}
		c.Share.BestEffort = c.Share.Cores == 0 && h.random.Intn(2) == 0
		c.Passing = i > 0 && h.random.Intn(4) == 0
		c.Lasting = i > 0 && !c.Passing && h.random.Intn(2) == 0
	}
	return ask
}

// sums adds up what the holdings' grants say, without the books' own sums.
func (h *history) check(t *testing.T, seed int64) {
	t.Helper()
	together, vids := map[string]usage{}, map[string]bool{}
	full, unlimited := map[string]string{}, map[string]string{}
	h.books.each(func(pod string, has holding) {
		ask := h.pods[pod]
		for i, grants := range has.placement.Containers {
			cards := map[string]bool{}
			for _, g := range grants {
				if cards[g.UUID] {
					t.Fatalf("seed %d: two grants of one container on card %s", seed, g.UUID)
				}
				cards[g.UUID] = true
				if has.state == coming {
					continue
				}
				if key := fmt.Sprint(g.UUID, "/", g.Vid); vids[key] {
					t.Fatalf("seed %d: virtual id %s twice", seed, key)
				} else {
					vids[key] = true
				}
				switch share := ask.Containers[i].Share; {
				case share.Cores == FullCores:
					full[g.UUID] = pod
				case share.Cores == 0 && !share.BestEffort:
					unlimited[g.UUID] = pod
				}
				if !ask.Containers[i].Passing {
					together[g.UUID] = together[g.UUID].plus(usage{cores: g.Cores, memMiB: g.MemMiB, tenants: 1})
				}
			}
		}
		if !has.placement.Matches(ask) {
			t.Fatalf("seed %d: %s asked for %+v and has %+v", seed, pod, ask, has.placement)
		}
	})
	for uuid, pod := range full {
		if other, meets := unlimited[uuid]; meets && other != pod {
			t.Fatalf("seed %d: %s was promised all cores of %s and meets %s, which has no limit", seed, pod, uuid, other)
		}
	}
	for i, card := range h.books.cards {
		sum, later := together[card.UUID], h.books.takenLater()[i]
		if sum.cores > FullCores || sum.memMiB > card.MemMiB || sum.tenants > card.Slots {
			t.Fatalf("seed %d: card %d has %+v", seed, i, sum)
		}
		if !h.books.used[i].covers(usage{cores: sum.cores, memMiB: sum.memMiB, tenants: sum.tenants}) {
			t.Fatalf("seed %d: card %d has %+v, the books say %+v", seed, i, sum, h.books.used[i])
		}
		if later.cores > FullCores || later.memMiB > card.MemMiB {
			t.Fatalf("seed %d: card %d was promised %+v", seed, i, later)
		}
		if !card.Healthy && sum.tenants > 0 {
			t.Fatalf("seed %d: sick card %d was given", seed, i)
		}
	}
}

// Whatever comes and goes: no card is over its cores, memory or slots, now or by promise; a
// container's grants lie on different cards; and when all have gone the books are as they were.
func TestRandomHistoriesNeverOvercommitACard(t *testing.T) {
	for seed := range int64(300) {
		h := newHistory(seed)
		fresh := h.books.String()
		for number := range 80 {
			h.step(number)
			h.check(t, seed)
		}
		for _, name := range h.names() {
			h.books.Release(name)
		}
		if after := h.books.String(); after != fresh {
			t.Fatalf("seed %d: after all had gone the books were %s", seed, after)
		}
	}
}

func TestTheSameHistoryGivesTheSamePlacements(t *testing.T) {
	for seed := range int64(50) {
		first, second := newHistory(seed), newHistory(seed)
		for number := range 80 {
			first.step(number)
			second.step(number)
		}
		if !reflect.DeepEqual(first.log, second.log) || first.books.String() != second.books.String() {
			t.Fatalf("seed %d: two runs differ", seed)
		}
	}
}

// Any one step, taken back, leaves the books as they were, on a copy as on the original; and the
// original never hears of what happens on its copy.
func TestEveryStepCanBeTakenBack(t *testing.T) {
	for seed := range int64(100) {
		h := newHistory(seed)
		for number := range 40 {
			h.step(number)
		}
		original := h.books.String()
		for number := range 20 {
			trial := h.books.Copy()
			before := trial.String()
			switch names := h.names(); {
			case number%2 == 0 || len(names) == 0:
				if _, reason := trial.Give("new", h.ask(), h.policy); reason != "" {
					trial.Expect("new", h.ask(), h.policy)
				}
				trial.Release("new")
			default:
				name := names[h.random.Intn(len(names))]
				if has, _ := trial.find(name); has.state == resident {
					trial.Leave(name)
					trial.Stay(name)
				}
			}
			if trial.String() != before || h.books.String() != original {
				t.Fatalf("seed %d step %d: %s became %s", seed, number, before, trial.String())
			}
		}
	}
}

// What a scheduler writes on its pods and later reads back gives the same books.
func TestAnnotationsRebuildTheBooks(t *testing.T) {
	for seed := range int64(100) {
		h := newHistory(seed)
		for number := range 60 {
			if ask, name := h.ask(), fmt.Sprint("pod-", number); number%3 < 2 {
				if _, reason := h.books.Give(name, ask, h.policy); reason == "" {
					h.pods[name] = ask
				}
			} else if names := h.names(); len(names) > 0 {
				h.books.Release(names[0])
				delete(h.pods, names[0])
			}
		}
		again := change(node(pairs(6), make([]used, 6)...), 5, sick)
		for _, name := range h.names() {
			has, _ := h.books.Holds(name)
			read, err := DecodePlacement(EncodePlacement(has))
			if err != nil {
				t.Fatal(err)
			}
			if unplaced := again.Reside(Tenancy{Pod: name, Ask: h.pods[name], Annotated: read}, h.policy); unplaced != "" {
				t.Fatalf("seed %d: %s", seed, unplaced)
			}
		}
		if again.String() != h.books.String() {
			t.Fatalf("seed %d: read back %s, was %s", seed, again, h.books)
		}
	}
}

// Victims help (the ask fits without them), none is one too many, and a single card is cleared.
func TestVictimsHelpAndNoneIsOneTooMany(t *testing.T) {
	found := 0
	for seed := range int64(150) {
		h := newHistory(seed)
		for number := range 60 {
			h.step(number)
		}
		ask := h.ask()
		var candidates []Candidate
		for _, name := range h.names() {
			candidates = append(candidates, Candidate{name, int32(h.random.Intn(3))})
		}
		victims := h.books.Victims(ask, h.policy, candidates)
		without := func(spared string) Reason {
			trial := h.books.Copy()
			for _, victim := range victims {
				if victim != spared {
					trial.Leave(victim)
				}
			}
			_, reason := trial.PlaceLater(ask, h.policy)
			return reason
		}
		if len(victims) == 0 {
			continue
		}
		found++
		if reason := without(""); reason != "" {
			t.Fatalf("seed %d: %v would be evicted in vain: %s", seed, victims, reason)
		}
		for _, victim := range victims {
			if without(victim) == "" {
				t.Fatalf("seed %d: %s of %v need not leave", seed, victim, victims)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d histories had victims; the test says little", found)
	}
}
