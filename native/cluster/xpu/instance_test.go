// SPDX-License-Identifier: Apache-2.0

package xpu

import (
	"fmt"
	"strings"
	"testing"
)

// part is an instance of card 0.
func part(place int, profile string, mib uint64) Card {
	return Card{UUID: fmt.Sprint("MIG-", place), Index: InstanceIndex(0, place), MemoryMiB: mib,
		Model: "NVIDIA A100-SXM4-40GB MIG " + profile, Healthy: true, Split: 20,
		Instance: &Instance{Parent: "GPU-0", GPU: 7 + place, Profile: profile, Capabilities: []int{66, 67}}}
}

func TestAnInstanceIsGivenOutLikeACard(t *testing.T) {
	cards := []Card{part(0, "3g.20gb", 19968), part(1, "1g.5gb", 4864), card(1, 40)}
	quarter := holding(Share{"MIG-0", 0, 75, 1024, "", 0})
	for name, test := range map[string]struct {
		held []Slice
		ask  Ask
		want string
	}{
		"whole, the smallest that is free": {nil, Ask{Cards: 1, CoresPercent: 100}, "MIG-1/0 100 % 4864 MiB"},
		"whole, of a profile":              {nil, Ask{Cards: 1, CoresPercent: 100, Models: "a100-mig-3g.20gb"}, "MIG-0/0 100 % 19968 MiB"},
		"whole, of a card's model":         {nil, Ask{Cards: 1, CoresPercent: 100, Models: "A100"}, "GPU-1/0 100 % 40960 MiB"},
		"sliced":                           {nil, Ask{Cards: 1, CoresPercent: 50, MemoryMiB: 2048}, "MIG-1/0 50 % 2048 MiB"},
		"beside a slice, percents of the instance": {quarter, Ask{Cards: 1, CoresPercent: 25, MemoryMiB: 2048, Models: "A100-MIG-3g.20gb"},
			"MIG-0/1 25 % 2048 MiB"},
		"no more than the instance": {quarter, Ask{Cards: 1, CoresPercent: 26, MemoryMiB: 2048, Models: "A100-MIG-3g.20gb"}, "too few cores"},
		"several of one container": {nil, Ask{Cards: 2, CoresPercent: 100},
			"MIG-0: 100 % cores and 19968 MiB free (a MIG instance, beside which a process sees no other card)"},
	} {
		shares, err := Place(cards, test.held, test.ask, nil)
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprintf("%s/%d %d %% %d MiB", shares[0].UUID, shares[0].VID, shares[0].CoresPercent, shares[0].MemoryMiB)
		}
		if !strings.Contains(got, test.want) {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

func TestAnnouncedAnInstanceIsACardOfItsOwnModel(t *testing.T) {
	one := part(1, "1g.5gb+me", 4864)
	want := "101,MIG-1,20,4864,GPU-A100-MIG-1g.5gb.me,true,0:"
	if got := RegisterValue([]Card{one}); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	one.ShortName = "tiny"
	if one.Short() != "tiny" {
		t.Errorf("the site's short name is passed over: %s", one.Short())
	}
	if InstanceIndex(0, 0) != 100 || InstanceIndex(1, 6) != 206 {
		t.Error("indexes of instances")
	}
}
