// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"flexai.io/xpu/cluster/pages"
)

func hard(cores uint32, active bool) Slice {
	return Slice{Mode: pages.ModeHard, Cores: cores, Active: active}
}

func elastic(cores, weight uint32, active bool) Slice {
	return Slice{Mode: pages.ModeElastic, Cores: cores, Weight: weight, Active: active}
}

func priority(weight uint32, active bool) Slice {
	return Slice{Mode: pages.ModePriority, Weight: weight, Active: active}
}

func fixed(cores, vid uint32) Slice {
	return Slice{Mode: pages.ModeFixedShare, Cores: cores, VID: vid}
}

func share(percent float64) Grant { return Grant{EffectiveQ16: q16(percent)} }

var paused = Grant{EffectiveQ16: q16(1), Paused: true}

func TestDecide(t *testing.T) {
	for name, test := range map[string]struct {
		slices []Slice
		want   []Grant
	}{
		"no slice":                      {nil, []Grant{}},
		"hard stays what it is":         {[]Slice{hard(30, true), hard(40, false)}, []Grant{{}, {}}},
		"an idle elastic one too":       {[]Slice{elastic(30, 1, false)}, []Grant{{}}},
		"elastic alone gets all":        {[]Slice{elastic(30, 0, true)}, []Grant{share(100)}},
		"elastic beside idle ones":      {[]Slice{elastic(30, 1, true), hard(70, false)}, []Grant{share(100), {}}},
		"elastic beside a busy one":     {[]Slice{elastic(30, 1, true), hard(50, true)}, []Grant{share(50), {}}},
		"nothing is left":               {[]Slice{elastic(30, 1, true), hard(70, true)}, []Grant{share(30), {}}},
		"two elastic ones by weight":    {[]Slice{elastic(20, 1, true), elastic(20, 3, true)}, []Grant{share(35), share(65)}},
		"an idle elastic one lends":     {[]Slice{elastic(20, 1, true), elastic(20, 3, false)}, []Grant{share(100), {}}},
		"beside an unmetered one none":  {[]Slice{elastic(20, 1, true), {Mode: pages.ModeNone, Unseen: true}}, []Grant{share(20), {}}},
		"scavenger beside a busy one":   {[]Slice{priority(0, true), hard(10, true)}, []Grant{paused, {}}},
		"scavenger beside an idle one":  {[]Slice{priority(0, true), hard(10, false)}, []Grant{share(100), {}}},
		"scavenger beside an unmetered": {[]Slice{priority(0, true), {Mode: pages.ModeNone, Unseen: true}}, []Grant{paused, {}}},
		"two scavengers share alike":    {[]Slice{priority(0, true), priority(0, false)}, []Grant{share(50), share(50)}},
		"scavenger beside a weighted":   {[]Slice{priority(0, true), priority(1, true)}, []Grant{paused, share(100)}},
		"weights share what is left":    {[]Slice{priority(1, true), priority(3, true), hard(60, true)}, []Grant{share(10), share(30), {}}},
		"a weighted one that has not yet asked": {[]Slice{priority(1, false), priority(3, true), hard(60, true)},
			[]Grant{share(10), share(40), {}}},
		"weighted beside a full card":  {[]Slice{priority(1, true), hard(100, true)}, []Grant{paused, {}}},
		"weighted and elastic compete": {[]Slice{priority(1, true), elastic(20, 1, true)}, []Grant{share(40), share(60)}},
		"fixed shares by virtual number": {[]Slice{fixed(30, 2), fixed(50, 1), hard(20, true)},
			[]Grant{{FrameUs: 100_000, WindowStartUs: 50_000, WindowUs: 30_000}, {FrameUs: 100_000, WindowUs: 50_000}, {}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Decide(test.slices); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func some(random *rand.Rand) []Slice {
	left := uint32(100)
	slices := make([]Slice, 1+random.IntN(8))
	for i := range slices {
		cores := random.Uint32N(left + 1)
		left -= cores
		slices[i] = Slice{Mode: pages.Mode(1 + random.IntN(4)), Cores: cores, Weight: random.Uint32N(3),
			VID: uint32(i), Active: random.IntN(2) == 0}
	}
	return slices
}

// inForce is what a slice may use, if it is one that is using anything.
func inForce(slice Slice, grant Grant) float64 {
	switch {
	case !slice.Active || grant.Paused:
		return 0
	case grant.EffectiveQ16 == 0:
		return float64(slice.Cores)
	}
	return float64(grant.EffectiveQ16) / pages.TrimOne
}

// However the card is divided: active slices together never get more than the card, an elastic one
// never less than it was promised, windows never overlap, and nobody idle is paused for good.
func TestWhateverIsAskedTheCardIsNotPromisedTwice(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		slices := some(random)
		grants := Decide(slices)
		sum, used := 0.0, make([]bool, FrameUs/100)
		for i, grant := range grants {
			sum += inForce(slices[i], grant)
			if slices[i].Mode == pages.ModeElastic && grant.EffectiveQ16 != 0 && grant.EffectiveQ16 < q16(float64(slices[i].Cores)) {
				t.Fatalf("%+v: slice %d gets less than promised: %+v", slices, i, grant)
			}
			for at := grant.WindowStartUs; at < grant.WindowStartUs+grant.WindowUs; at += 100 {
				if used[at/100] {
					t.Fatalf("%+v: windows overlap: %+v", slices, grants)
				}
				used[at/100] = true
			}
		}
		if sum > 100.001 {
			t.Fatalf("%+v: %v %% of the card in force: %+v", slices, sum, grants)
		}
	}
}
