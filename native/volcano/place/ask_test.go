// SPDX-License-Identifier: Apache-2.0

package place

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
)

// vector is one line of the table to which the device plugin is held too, so that both settle the
// same asks and let the same shares meet.
type vector struct {
	Name   string
	Totals Totals
	Shape  *Shape
	Ask    *struct {
		Cards, CoresPercent int
		MemoryMiB           int64
	}
	Refused string
	Class   string
	// Beside are the shares that a card of 40 GiB holds; Joins says whether one of the ask may come.
	Beside []struct {
		Cores     int
		MemoryGiB int64
		Class     Class
	}
	Joins *bool
}

func vectors(t *testing.T) []vector {
	t.Helper()
	text, err := os.ReadFile("../../common/vectors/slices.json")
	if err != nil {
		t.Fatal(err)
	}
	var found []vector
	if err := json.Unmarshal(text, &found); err != nil || len(found) < 33 {
		t.Fatalf("%d vectors, %v", len(found), err)
	}
	return found
}

func TestWhoMayJoinWhomByTheSharedVectors(t *testing.T) {
	for _, v := range vectors(t) {
		if v.Joins == nil {
			continue
		}
		t.Run(v.Name, func(t *testing.T) {
			var there used
			for _, one := range v.Beside {
				there = append(there, Share{one.Cores, one.MemoryGiB * 1024, one.Class == BestEffort})
			}
			shape, _ := json.Marshal(map[string]*Shape{"c": v.Shape})
			if v.Shape == nil {
				shape = nil
			}
			ask, reason := NewAsk([]Container{{Name: "c", Totals: v.Totals}}, Wishes{Class: v.Class, Shapes: string(shape)}, NoClass)
			if reason != "" {
				t.Fatal(reason)
			}
			if _, reason := node(nil, there).Place(ask, Binpack); (reason == "") != *v.Joins {
				t.Errorf("%+v: %q", ask, reason)
			}
		})
	}
}

func TestSettleByTheSharedVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			got, reason := Settle("c", v.Totals, v.Shape)
			if v.Ask == nil {
				if !strings.Contains(string(reason), v.Refused) || reason == "" {
					t.Errorf("reason %q, want one that names %q", reason, v.Refused)
				}
				return
			}
			want := ContainerAsk{Name: "c", Count: v.Ask.Cards, Share: Share{Cores: v.Ask.CoresPercent, MemMiB: v.Ask.MemoryMiB}}
			if reason != "" || got != want {
				t.Errorf("%+v %q, want %+v", got, reason, want)
			}
		})
	}
}

func TestNewAsk(t *testing.T) {
	slice := Container{Name: "c", Totals: Totals{1, 20, 3}}
	memory := Container{Name: "c", Totals: Totals{1, 0, 3}}
	whole := Container{Name: "c", Totals: Totals{2, 0, 0}}
	share := func(s Share) []ContainerAsk { return []ContainerAsk{{Name: "c", Count: 1, Share: s}} }
	cases := map[string]struct {
		containers []Container
		wishes     Wishes
		site       Class
		want       Ask
		refused    string
	}{
		"a pod without slices is not read any further": {
			containers: []Container{{Name: "c"}}, wishes: Wishes{Class: "gold", Shapes: "{", Policy: "best"},
		},
		"a slice": {
			containers: []Container{slice}, want: Ask{Containers: share(Share{20, 3072, false})},
		},
		"guaranteed and elastic reserve their cores": {
			containers: []Container{slice}, wishes: Wishes{Class: "elastic"},
			want: Ask{Containers: share(Share{20, 3072, false})},
		},
		"best-effort reserves memory only": {
			containers: []Container{memory}, wishes: Wishes{Class: "best-effort"},
			want: Ask{Containers: share(Share{0, 3072, true})},
		},
		"memory alone without class has no compute limit": {
			containers: []Container{memory}, want: Ask{Containers: share(Share{0, 3072, false})},
		},
		"memory alone is best-effort where the site says so": {
			containers: []Container{memory}, site: BestEffort, want: Ask{Containers: share(Share{0, 3072, true})},
		},
		"cores are not best-effort, whatever the site says": {
			containers: []Container{slice}, site: BestEffort, want: Ask{Containers: share(Share{20, 3072, false})},
		},
		"whole cards are guaranteed": {
			containers: []Container{whole}, wishes: Wishes{Class: "guaranteed"},
			want: Ask{Containers: []ContainerAsk{{Name: "c", Count: 2, Share: Share{Cores: 100}}}},
		},
		"models, bandwidth and policy": {
			containers: []Container{slice}, wishes: Wishes{Models: "V100, A100", Bandwidth: "90", Policy: "topology"},
			want: Ask{Containers: share(Share{20, 3072, false}), Models: []string{"V100", "A100"}, Bandwidth: 90, Policy: "topology"},
		},
		"the shape of the container it names": {
			containers: []Container{{Name: "c", Totals: Totals{2, 40, 6}}},
			wishes:     Wishes{Shapes: `{"c":{"number":2,"cores":20,"memoryGiB":3},"x":{"number":1}}`},
			want:       Ask{Containers: []ContainerAsk{{Name: "c", Count: 2, Share: Share{20, 3072, false}}}},
		},
		"best-effort with cores": {containers: []Container{slice}, wishes: Wishes{Class: "best-effort"}, refused: "reserves none"},
		"best-effort whole card": {containers: []Container{whole}, wishes: Wishes{Class: "best-effort"}, refused: "reserves none"},
		"guaranteed without cores": {
			containers: []Container{memory}, wishes: Wishes{Class: "guaranteed"}, refused: "without vgpu-cores",
		},
		"a class there is not":   {containers: []Container{slice}, wishes: Wishes{Class: "gold"}, refused: `class "gold" is unknown`},
		"a policy there is not":  {containers: []Container{slice}, wishes: Wishes{Policy: "best"}, refused: `flexai.io/policy is "best"`},
		"a bandwidth below zero": {containers: []Container{slice}, wishes: Wishes{Bandwidth: "-1"}, refused: `intra-bandwidth is "-1"`},
		"a shape with an unknown key": {
			containers: []Container{slice}, wishes: Wishes{Shapes: `{"c":{"nmber":1}}`}, refused: "vgpu-shape is malformed",
		},
		"a shape with something after it": {
			containers: []Container{slice}, wishes: Wishes{Shapes: `{}{}`}, refused: "after its end",
		},
		"numbers that overflow when multiplied": {
			containers: []Container{{Name: "c", Totals: Totals{1 << 40, 1 << 40, 0}}}, refused: "each may be 0 to",
		},
		"several that the webhook hasn't seen": {
			containers: []Container{{Name: "c", Totals: Totals{2, 40, 6}}}, refused: "webhook",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, reason := NewAsk(c.containers, c.wishes, c.site)
			if c.refused != "" {
				if !strings.Contains(string(reason), c.refused) {
					t.Errorf("reason %q, want one with %q", reason, c.refused)
				}
				return
			}
			if reason != "" || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v %q, want %+v", got, reason, c.want)
			}
		})
	}
}

func TestAsksWithOneKeyArePlacedAlike(t *testing.T) {
	base := one(20, 3072)
	for name, other := range map[string]Ask{
		"count": several(2, 20, 3072), "cores": one(21, 3072), "memory": one(20, 3073),
		"class": bestEffort(3072), "models": base.of("A100"), "bandwidth": base.linkedBy(5),
		"policy":  base.choosing("spread"),
		"passing": asks(passing("main", Share{Cores: 20, MemMiB: 3072})),
	} {
		if base.Key() == other.Key() {
			t.Errorf("%s makes no difference to the key %s", name, base.Key())
		}
	}
	if renamed := asks(ContainerAsk{Name: "other", Count: 1, Share: Share{Cores: 20, MemMiB: 3072}}); renamed.Key() != base.Key() {
		t.Error("names make a difference")
	}
}
