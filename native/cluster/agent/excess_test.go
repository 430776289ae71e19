// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"reflect"
	"testing"

	"flexai.io/xpu/cluster/xpu"
)

// offer are the ids of two cards of 40 GiB that hold 20 slices each.
func offer() map[string][]string {
	return map[string][]string{names.Number: count("n", 40), names.Cores: count("c", 200), names.Memory: count("m", 80)}
}

func TestIdsThatStandForNothingAreWithdrawn(t *testing.T) {
	for name, test := range map[string]struct {
		history func(t *testing.T, w *world, a *Agent)
		want    xpu.Counts // withdrawn of each resource
	}{
		"nothing on a quiet node": {func(*testing.T, *world, *Agent) {}, xpu.Counts{}},
		"nothing for plain slices": {func(t *testing.T, w *world, a *Agent) {
			w.admit("u1", "p", "c", []string{"n0"}, 20, 3)
			prepare(t, a, "n0")
		}, xpu.Counts{}},
		"nothing before the start": {func(t *testing.T, w *world, a *Agent) { w.admit("u1", "p", "c", []string{"n0"}, 20, 3) }, xpu.Counts{}},
		"a whole card by number": {func(t *testing.T, w *world, a *Agent) {
			w.admit("u1", "p", "c", []string{"n0"}, 0, 0)
			prepare(t, a, "n0")
		},
			xpu.Counts{Number: 19, Cores: 100, MemoryGiB: 40}},
		"all memory of a card": {func(t *testing.T, w *world, a *Agent) {
			w.admit("u1", "p", "c", []string{"n0"}, 30, 0)
			prepare(t, a, "n0")
		},
			xpu.Counts{Number: 19, Cores: 70, MemoryGiB: 40}},
		"nothing beside cores that are all promised: best-effort shares need none": {func(t *testing.T, w *world, a *Agent) {
			w.admit("u1", "p", "c", []string{"n0"}, 100, 3)
			prepare(t, a, "n0")
		}, xpu.Counts{}},
		"a sick card": {func(t *testing.T, w *world, a *Agent) { sicken(a, 1) }, xpu.Counts{Number: 20, Cores: 100, MemoryGiB: 40}},
		"a sick card with a slice": {func(t *testing.T, w *world, a *Agent) {
			w.admit("u1", "p", "c", []string{"n0"}, 20, 3)
			prepare(t, a, "n0")
			sicken(a, 0)
		}, xpu.Counts{Number: 19, Cores: 80, MemoryGiB: 37}},
		"the host's slice": {func(t *testing.T, w *world, a *Agent) {
			ledger, err := xpu.NewLedger([]xpu.Slice{{Key: "box", Owner: xpu.Owner{PodUID: "host", Container: "box"},
				Shares: []xpu.Share{{UUID: "GPU-0", CoresPercent: 50, MemoryMiB: 10240}}}})
			if err != nil {
				t.Fatal(err)
			}
			a.ledger, w.saved = ledger, ledger
		}, xpu.Counts{Number: 1, Cores: 50, MemoryGiB: 10}},
		"a pod that ended": {func(t *testing.T, w *world, a *Agent) {
			w.admit("u1", "p", "c", []string{"n0"}, 0, 0)
			prepare(t, a, "n0")
			w.forget("u1")
		}, xpu.Counts{}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			a := w.start(t)
			test.history(t, w, a)
			excess, err := a.Excess(offer())
			if err != nil {
				t.Fatal(err)
			}
			got := xpu.Counts{Number: len(excess[names.Number]), Cores: len(excess[names.Cores]), MemoryGiB: len(excess[names.Memory])}
			if got != test.want {
				t.Errorf("withdrawn %+v, want %+v", got, test.want)
			}
			for _, entry := range w.entries {
				if anyOf(entry.IDs, excess[entry.Resource]) {
					t.Errorf("an id that a container holds is withdrawn: %v of %v", entry, excess[entry.Resource])
				}
			}
		})
	}
}

func sicken(a *Agent, index int) {
	cards := append([]xpu.Card(nil), a.Cards...)
	cards[index].Healthy = false
	a.SetCards(cards)
}

// A sick card takes no new slice, and what runs on it stays and may restart.
func TestASickCardKeepsWhatRunsOnIt(t *testing.T) {
	w := newWorld()
	w.admit("u1", "p1", "app", []string{"a"}, 20, 3)
	w.admit("u2", "p2", "app", []string{"b"}, 20, 3)
	w.admit("u3", "p3", "app", []string{"c"}, 20, 3)
	a := w.start(t)
	first := prepare(t, a, "a")
	sicken(a, 0)
	if other := prepare(t, a, "b"); other.Shares[0].UUID != "GPU-1" {
		t.Errorf("a new slice on sick %s", other.Shares[0].UUID)
	}
	if again := prepare(t, a, "a"); !reflect.DeepEqual(again, first) {
		t.Errorf("%+v after a restart, %+v before", again, first)
	}
	cards := append([]xpu.Card(nil), a.Cards...)
	cards[0].Healthy = true
	cards[1].Healthy = false
	a.SetCards(cards)
	if other := prepare(t, a, "c"); other.Shares[0].UUID != "GPU-0" {
		t.Errorf("recovered GPU-0 was passed over for %s", other.Shares[0].UUID)
	}
}
