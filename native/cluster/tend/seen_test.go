// SPDX-License-Identifier: Apache-2.0

package tend

import (
	"os"
	"testing"

	"flexai.io/xpu/cluster/pages"
)

func TestEachSecondItIsToldWhatThePagesSay(t *testing.T) {
	b := newBench(t)
	var told [][]Seen
	b.Observe = func(all []Seen) { told = append(told, all) }
	pair := b.slice("a", pages.Card{CoresPercent: 30, MemoryBytes: 3 << 30, Mode: pages.ModeHard})
	b.joined(pair, 0, 64*mib)
	pair.Use(t, 0, pages.CardUse{ChargedNs: 7, ThrottledNs: 8, MemoryBytes: 999 * mib, Denied: 9})
	b.pass(3e9)
	if len(told) != 3 {
		t.Fatalf("told %d times in three seconds", len(told))
	}
	last := told[2]
	if len(last) != 1 || last[0].Slice.Key != "a" || last[0].Processes != 1 || last[0].MonoNs > b.now || len(last[0].Cards) != 1 {
		t.Fatalf("%+v", last)
	}
	card := last[0].Cards[0]
	if card.Grant.CoresPercent != 30 || card.Use.ChargedNs != 7 || card.Use.ThrottledNs != 8 || card.Use.Denied != 9 {
		t.Errorf("%+v", card)
	}
	if card.HeldBytes != 64*mib {
		t.Errorf("held %d: the slots are the truth, not the sum that a writer left", card.HeldBytes)
	}
}

func TestASliceWhosePagesCannotBeReadIsNotToldOf(t *testing.T) {
	b := newBench(t)
	var last []Seen
	b.Observe = func(all []Seen) { last = all }
	b.slice("a", pages.Card{CoresPercent: 30})
	broken := b.slice("b", pages.Card{CoresPercent: 30})
	if err := os.Truncate(broken.Ledger, 10); err != nil {
		t.Fatal(err)
	}
	b.pass(2e9)
	if len(last) != 1 || last[0].Slice.Key != "a" {
		t.Errorf("%+v", last)
	}
}
