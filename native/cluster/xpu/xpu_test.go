// SPDX-License-Identifier: Apache-2.0

package xpu

import (
	"errors"
	"fmt"
	"math/rand"
	"reflect"
	"strings"
	"testing"
)

func card(index int, gib uint64) Card {
	return Card{UUID: fmt.Sprintf("GPU-%d", index), Index: index, Minor: index, MemoryMiB: gib * MiBPerGiB,
		Model: "NVIDIA A100-SXM4-40GB", Healthy: true, Split: 20}
}

func TestKeyDependsOnTheSetAlone(t *testing.T) {
	if Key([]string{"a", "b"}) != Key([]string{"b", "a"}) {
		t.Error("order changes the key")
	}
	for _, other := range [][]string{{"a"}, {"ab"}, {"a", "b", "c"}, nil} {
		if Key([]string{"a", "b"}) == Key(other) {
			t.Errorf("%q has the key of a, b", other)
		}
	}
}

func holding(shares ...Share) []Slice { return []Slice{{Owner: Owner{"u", "c"}, Shares: shares}} }

func TestPlace(t *testing.T) {
	cards := []Card{card(0, 40), card(1, 40)}
	sick := card(2, 80)
	sick.Healthy = false
	small := card(3, 40)
	small.Split = 1
	for name, test := range map[string]struct {
		cards     []Card
		held      []Slice
		ask       Ask
		preferred []string
		want      []string
		wantError string
	}{
		"the fuller card": {cards, holding(Share{"GPU-1", 0, 20, 1024, "", 0}), Ask{Cards: 1, CoresPercent: 20, MemoryMiB: 1024}, nil, []string{"GPU-1/1"}, ""},
		"the preferred one": {cards, holding(Share{"GPU-1", 0, 20, 1024, "", 0}), Ask{Cards: 1, CoresPercent: 20, MemoryMiB: 1024}, []string{"GPU-0"},
			[]string{"GPU-0/0"}, ""},
		"a full preference is passed over": {cards, holding(Share{"GPU-0", 0, 90, 1024, "", 0}), Ask{Cards: 1, CoresPercent: 20, MemoryMiB: 1024},
			[]string{"GPU-0"}, []string{"GPU-1/0"}, ""},
		"an unknown preference":       {cards, nil, Ask{Cards: 1, CoresPercent: 20, MemoryMiB: 1024}, []string{"GPU-9"}, []string{"GPU-0/0"}, ""},
		"preferences in their order":  {cards, nil, Ask{Cards: 2, CoresPercent: 100, MemoryMiB: 0}, []string{"GPU-1", "GPU-0"}, []string{"GPU-1/0", "GPU-0/0"}, ""},
		"whole card on an empty card": {cards, holding(Share{"GPU-0", 0, 0, 1, "", 0}), Ask{Cards: 1, CoresPercent: 100, MemoryMiB: 0}, nil, []string{"GPU-1/0"}, ""},
		"lowest free virtual number": {cards[:1], holding(Share{"GPU-0", 0, 1, 1, "", 0}, Share{"GPU-0", 2, 1, 1, "", 0}), Ask{Cards: 1, CoresPercent: 1, MemoryMiB: 1}, nil,
			[]string{"GPU-0/1"}, ""},
		"full compute beside none limited": {cards[:1], holding(Share{"GPU-0", 0, 0, 1024, "", 0}), Ask{Cards: 1, CoresPercent: 100, MemoryMiB: 1024}, nil, nil,
			"a share without compute limit on it"},
		"no limit beside full compute": {cards[:1], holding(Share{"GPU-0", 0, 100, 1024, "", 0}), Ask{Cards: 1, CoresPercent: 0, MemoryMiB: 1024}, nil, nil,
			"all of its cores promised"},
		"idle time beside full compute": {cards[:1], holding(Share{"GPU-0", 0, 100, 1024, "", 0}), Ask{Cards: 1, MemoryMiB: 1024, Mode: ModePriority}, nil,
			[]string{"GPU-0/1"}, ""},
		"too much memory":           {cards[:1], holding(Share{"GPU-0", 0, 20, 39 * 1024, "", 0}), Ask{Cards: 1, CoresPercent: 20, MemoryMiB: 2048}, nil, nil, "1024 MiB free (too little memory)"},
		"too many cores":            {cards[:1], holding(Share{"GPU-0", 0, 90, 1024, "", 0}), Ask{Cards: 1, CoresPercent: 20, MemoryMiB: 1024}, nil, nil, "10 % cores"},
		"more cards than there are": {cards, nil, Ask{Cards: 3, CoresPercent: 100, MemoryMiB: 0}, nil, nil, "3 card(s)"},
		"a sick card":               {[]Card{sick}, nil, Ask{Cards: 1, CoresPercent: 20, MemoryMiB: 1024}, nil, nil, "unhealthy"},
		"every slice taken":         {[]Card{small}, holding(Share{"GPU-3", 0, 1, 1, "", 0}), Ask{Cards: 1, CoresPercent: 1, MemoryMiB: 1}, nil, nil, "all 1 slices taken"},
		"no card at all":            {nil, nil, Ask{Cards: 1, CoresPercent: 1, MemoryMiB: 1}, nil, nil, "no card"},
	} {
		t.Run(name, func(t *testing.T) {
			shares, err := Place(test.cards, test.held, test.ask, test.preferred)
			var got []string
			for _, s := range shares {
				got = append(got, fmt.Sprintf("%s/%d", s.UUID, s.VID))
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %v (%v), want %v", got, err, test.want)
			}
			var noFit *NoFit
			if test.wantError != "" && (!errors.As(err, &noFit) || !strings.Contains(err.Error(), test.wantError)) {
				t.Errorf("error %v, want %q", err, test.wantError)
			}
		})
	}
}

func TestReserveHandsTokensOn(t *testing.T) {
	cards := []Card{card(0, 40)}
	first := Claim{Owner: Owner{"u1", "init"}, Tokens: []string{"a"}, Ask: Ask{Cards: 1, CoresPercent: 100, MemoryMiB: 0}}
	second := Claim{Owner: Owner{"u1", "app"}, Tokens: []string{"a", "b"}, Ask: Ask{Cards: 1, CoresPercent: 100, MemoryMiB: 0}}
	ledger, _ := NewLedger(nil)
	ledger, _, _, err := ledger.Reserve(cards, first)
	if err != nil {
		t.Fatal(err)
	}
	stranger := Claim{Owner: Owner{"u2", "app"}, Tokens: []string{"c"}, Ask: Ask{Cards: 1, CoresPercent: 100, MemoryMiB: 0}}
	if _, _, _, err := ledger.Reserve(cards, stranger); err == nil {
		t.Error("a card was given twice")
	}
	ledger, _, ended, err := ledger.Reserve(cards, second)
	if err != nil || len(ended) != 1 || ended[0].Owner != first.Owner || len(ledger.Slices()) != 1 {
		t.Errorf("ended %v, err %v, ledger %v", ended, err, ledger.Slices())
	}
	if _, _, _, err := ledger.Reserve(cards, Claim{Owner: Owner{"u3", "x"}, Tokens: []string{"z"}}); err == nil {
		t.Error("a claim without an ask got an empty slice")
	}
}

// Over random histories: no card is promised twice, tokens have one owner, the same claim gives the
// same slice, and what a ledger stored is what it reads.
func TestLedgerInvariants(t *testing.T) {
	for seed := range int64(200) {
		random := rand.New(rand.NewSource(seed))
		cards := []Card{card(0, 40), card(1, 16), card(2, 80), part(0, "3g.20gb", 19968), part(1, "1g.5gb", 4864)}
		cards[1].Split = 3
		ledger, _ := NewLedger(nil)
		for step := range 120 {
			before := ledger.Slices()
			if random.Intn(3) == 0 && len(before) > 0 {
				ledger = ledger.Release(before[random.Intn(len(before))].Owner)
				continue
			}
			claim := randomClaim(random, step)
			next, slice, _, err := ledger.Reserve(cards, claim)
			if err != nil {
				if !reflect.DeepEqual(before, next.Slices()) {
					t.Fatalf("seed %d: a refused claim changed the ledger", seed)
				}
				continue
			}
			again, same, ended, err := next.Reserve(cards, claim)
			if err != nil || len(ended) > 0 || !reflect.DeepEqual(same, slice) || len(again.slices) != len(next.slices) {
				t.Fatalf("seed %d: the same claim gave %+v after %+v (%v)", seed, same, slice, err)
			}
			ledger = next
			check(t, seed, cards, ledger)
		}
	}
}

func randomClaim(random *rand.Rand, step int) Claim {
	claim := Claim{Owner: Owner{fmt.Sprint("u", random.Intn(30)), fmt.Sprint("c", random.Intn(2))},
		Tokens: []string{fmt.Sprint("t", random.Intn(40))}}
	switch random.Intn(4) {
	case 0:
		claim.Ask = Ask{Cards: 1 + random.Intn(2), CoresPercent: FullCores}
		claim.Tokens = append(claim.Tokens, fmt.Sprint("t", 40+step))
	case 1:
		claim.Ask = Ask{Cards: 1, MemoryMiB: uint64(1+random.Intn(20)) * MiBPerGiB, Mode: []Mode{"", ModePriority}[random.Intn(2)]}
	default:
		claim.Ask = Ask{Cards: 1, CoresPercent: 5 * (1 + random.Intn(20)), MemoryMiB: uint64(random.Intn(20)) * MiBPerGiB}
	}
	if random.Intn(2) == 0 {
		claim.Preferred = []string{[]string{"GPU-0", "GPU-1", "GPU-2", "GPU-3", "MIG-0", "MIG-1"}[random.Intn(6)]}
	}
	return claim
}

func check(t *testing.T, seed int64, cards []Card, ledger Ledger) {
	t.Helper()
	// NewLedger refuses double owners, tokens and virtual numbers.
	again, err := NewLedger(ledger.Slices())
	if err != nil || !reflect.DeepEqual(again.Slices(), ledger.Slices()) {
		t.Fatalf("seed %d: the ledger does not read back: %v", seed, err)
	}
	for _, slice := range ledger.Slices() {
		for _, share := range slice.Shares {
			if len(slice.Shares) > 1 && strings.HasPrefix(share.UUID, "MIG-") {
				t.Fatalf("seed %d: an instance is one of several cards: %+v", seed, slice)
			}
		}
	}
	used := use(ledger.Slices())
	for _, c := range cards {
		u := used[c.UUID]
		if u.cores > FullCores || u.memory > c.MemoryMiB || u.shares() > c.Split {
			t.Fatalf("seed %d: card %s is over-promised: %+v", seed, c.UUID, u)
		}
		checkCompany(t, seed, c, ledger.Slices())
	}
}

// checkCompany: who was promised all cores of a card meets none without a compute limit, and who was
// promised all of a card meets nobody.
func checkCompany(t *testing.T, seed int64, c Card, held []Slice) {
	t.Helper()
	var here []Share
	for _, slice := range held {
		for _, share := range slice.Shares {
			if share.UUID == c.UUID {
				here = append(here, share)
			}
		}
	}
	for i, one := range here {
		for _, other := range append(here[:i:i], here[i+1:]...) {
			if one.CoresPercent == FullCores && (other.CoresPercent > 0 || other.Mode != ModePriority || one.MemoryMiB == c.MemoryMiB) {
				t.Fatalf("seed %d: on card %s %+v meets %+v", seed, c.UUID, one, other)
			}
		}
	}
}

func TestNewLedgerRefusesWhatCannotBe(t *testing.T) {
	share := Share{UUID: "GPU-0", VID: 0, CoresPercent: 1}
	for name, slices := range map[string][]Slice{
		"one owner twice":          {{Owner: Owner{"u", "c"}}, {Owner: Owner{"u", "c"}}},
		"a token twice":            {{Owner: Owner{"u", "a"}, Tokens: []string{"t"}}, {Owner: Owner{"u", "b"}, Tokens: []string{"t"}}},
		"an unknown mode":          {{Owner: Owner{"u", "a"}, Shares: []Share{{UUID: "GPU-0", Mode: "generous"}}}},
		"a negative weight":        {{Owner: Owner{"u", "a"}, Shares: []Share{{UUID: "GPU-0", Weight: -1}}}},
		"a virtual number twice":   {{Owner: Owner{"u", "a"}, Shares: []Share{share}}, {Owner: Owner{"u", "b"}, Shares: []Share{share}}},
		"twice within one's own":   {{Owner: Owner{"u", "a"}, Shares: []Share{share, share}}},
		"a token twice in one set": {{Owner: Owner{"u", "a"}, Tokens: []string{"t", "t"}}},
	} {
		if _, err := NewLedger(slices); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestGoneMeansMissedTwiceInARow(t *testing.T) {
	var absence Absence
	a, b := Owner{"u", "a"}, Owner{"u", "b"}
	look := func(alive ...Owner) []Owner {
		return absence.Look([]Owner{a, b}, func(o Owner) bool {
			for _, one := range alive {
				if one == o {
					return true
				}
			}
			return false
		})
	}
	for i, step := range []struct{ alive, want []Owner }{
		{[]Owner{a, b}, nil}, {[]Owner{b}, nil}, {[]Owner{a}, nil}, {[]Owner{a}, []Owner{b}},
	} {
		if got := look(step.alive...); !reflect.DeepEqual(got, step.want) {
			t.Errorf("look %d: gone %v, want %v", i, got, step.want)
		}
	}
}

func TestAnnotations(t *testing.T) {
	want := "0,GPU-0,20,40960,GPU-A100,true,0:1,GPU-1,20,16384,GPU-T4,true,-1:"
	second := card(1, 16)
	second.Model, second.NUMA = "Tesla T4", -1
	if got := RegisterValue([]Card{card(0, 40), second}); got != want {
		t.Errorf("register %q, want %q", got, want)
	}
	for model, want := range map[string]string{"NVIDIA H100 80GB HBM3": "H100", "Tesla T4": "T4",
		"NVIDIA GeForce": "NVIDIAGeForce", "": "", ",:;": ""} {
		if got := ShortModel(model); got != want {
			t.Errorf("model %q is %q, want %q", model, got, want)
		}
	}
	text := "0,GPU-0,GPU,1024,20,0:;;1,GPU-1,GPU,0,100,0:2,GPU-2,GPU,0,100,0:"
	for container, want := range map[int][]string{0: {"GPU-0"}, 1: nil, 2: {"GPU-1", "GPU-2"}, 3: nil, -1: nil} {
		if got := Preferred(text, container); !reflect.DeepEqual(got, want) {
			t.Errorf("container %d prefers %v, want %v", container, got, want)
		}
	}
	if got := Preferred("garbage", 0); got != nil {
		t.Errorf("garbage prefers %v", got)
	}
}
