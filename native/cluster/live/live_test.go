// SPDX-License-Identifier: Apache-2.0

package live

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"flexai.io/xpu/cluster/live/livetest"
	"flexai.io/xpu/cluster/pages"
)

func TestMain(m *testing.M) { livetest.Main(m) }

func open(t *testing.T, cards ...pages.Card) (*Slice, livetest.Pair) {
	t.Helper()
	pair := livetest.New(t, t.TempDir(), cards...)
	slice, err := Open(pair.Config, pair.Ledger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(slice.Close)
	return slice, pair
}

func setTrim(value uint32) func([]pages.Card) {
	return func(cards []pages.Card) { cards[0].TrimQ16 = value }
}

func TestChangeIsInPlaceAndCountsTheEpoch(t *testing.T) {
	slice, pair := open(t, pages.Card{UUID: "GPU-0", CoresPercent: 20, TrimQ16: 1}, pages.Card{UUID: "GPU-1"})
	before, _ := os.Stat(pair.Config)
	for i, test := range []struct {
		trim    uint32
		changed bool
		epoch   uint32
	}{{7, true, 2}, {7, false, 2}, {8, true, 4}} {
		changed, err := slice.Change(setTrim(test.trim), false)
		got := pair.Read(t)
		if err != nil || changed != test.changed || got.Epoch != test.epoch || got.Cards[0].TrimQ16 != test.trim {
			t.Errorf("%d: changed %t, %+v, %v", i, changed, got, err)
		}
		if got.Cards[0].CoresPercent != 20 || got.Cards[1].UUID != "GPU-1" {
			t.Errorf("%d: more than the trim changed: %+v", i, got)
		}
	}
	if after, _ := os.Stat(pair.Config); !os.SameFile(before, after) {
		t.Error("the page was replaced; who has it mapped sees nothing")
	}
}

func TestReservedBytesStay(t *testing.T) {
	slice, pair := open(t, pages.Card{UUID: "GPU-0"})
	for _, at := range []int64{20, 64 + 120, 64 + 127} {
		poke(t, pair.Config, at, 0xab)
	}
	if _, err := slice.Change(setTrim(9), false); err != nil {
		t.Fatal(err)
	}
	page, _ := os.ReadFile(pair.Config)
	if page[20] != 0xab || page[64+120] != 0xab || page[64+127] != 0xab {
		t.Error("what a later version put there is gone")
	}
}

func poke(t *testing.T, path string, at int64, value byte) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte{value}, at); err != nil {
		t.Fatal(err)
	}
}

func TestAnotherWriterIsWaitedForUnlessHeWasKilled(t *testing.T) {
	slice, pair := open(t, pages.Card{UUID: "GPU-0"})
	poke(t, pair.Config, epochOffset, 5)
	if _, err := slice.Change(setTrim(9), false); !errors.Is(err, ErrBeingWritten) {
		t.Errorf("%v", err)
	}
	if got := pair.Read(t); got.Epoch != 5 || got.Cards[0].TrimQ16 != 0 {
		t.Errorf("the page was written: %+v", got)
	}
	if _, err := slice.Config(); !errors.Is(err, ErrBeingWritten) {
		t.Errorf("%v", err)
	}
	// Also where there is nothing to change: readers wait for the epoch to be even.
	if changed, err := slice.Change(setTrim(0), true); err != nil || !changed || pair.Read(t).Epoch != 6 {
		t.Errorf("%t %v %+v", changed, err, pair.Read(t))
	}
}

// A reader who goes by the epoch never sees two halves.
func TestReadersNeverSeeHalfAChange(t *testing.T) {
	slice, pair := open(t, pages.Card{UUID: "GPU-0"}, pages.Card{UUID: "GPU-1"})
	file, err := os.Open(pair.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		whole := 0
		for {
			select {
			case <-done:
				if whole == 0 {
					t.Error("the reader saw nothing")
				}
				return
			default:
			}
			var first, second [pages.ConfigBytes]byte
			_, _ = file.ReadAt(first[:], 0)
			_, _ = file.ReadAt(second[:], 0)
			epoch := binary.LittleEndian.Uint32(first[epochOffset:])
			if epoch%2 != 0 || epoch != binary.LittleEndian.Uint32(second[epochOffset:]) {
				continue
			}
			whole++
			if config, err := pages.Decode(first[:]); err != nil || config.Cards[0].TrimQ16 != config.Cards[1].TrimQ16 {
				t.Errorf("epoch %d: %+v %v", epoch, config, err)
				return
			}
		}
	})
	for value := range uint32(2000) {
		if _, err := slice.Change(func(cards []pages.Card) { cards[0].TrimQ16, cards[1].TrimQ16 = value, value }, false); err != nil {
			t.Error(err)
		}
	}
	close(done)
	group.Wait()
}

func TestHolderIsTheKernelsWord(t *testing.T) {
	slice, pair := open(t, pages.Card{UUID: "GPU-0"})
	if _, held, err := slice.Holder(3); held || err != nil {
		t.Errorf("a lock nobody took: %t %v", held, err)
	}
	member := pair.Hold(t, 3)
	if pid, held, err := slice.Holder(3); pid != member.PID || !held || err != nil {
		t.Errorf("%d %t %v, want %d", pid, held, err, member.PID)
	}
	if _, held, _ := slice.Holder(2); held {
		t.Error("the lock reaches into the next slot")
	}
	member.Die()
	if _, held, err := slice.Holder(3); held || err != nil {
		t.Errorf("a dead process holds a lock: %t %v", held, err)
	}
}

func TestClearTakesOnlyTheDead(t *testing.T) {
	slice, pair := open(t, pages.Card{UUID: "GPU-0"})
	pair.Slot(t, 0, 11, 1, 100)
	pair.Slot(t, 1, 22, 2, 200, 300)
	member := pair.Hold(t, 1)
	if cleared, err := slice.Clear(1, 22); cleared || err != nil {
		t.Errorf("a living process was cleared: %t %v", cleared, err)
	}
	if cleared, err := slice.Clear(0, 99); cleared || err != nil {
		t.Errorf("another owner's slot was cleared: %t %v", cleared, err)
	}
	member.Die()
	if cleared, err := slice.Clear(1, 22); !cleared || err != nil {
		t.Errorf("%t %v", cleared, err)
	}
	slots, err := slice.Slots(2)
	if err != nil || slots[0].Owner != 11 || slots[0].MemoryBytes[0] != 100 {
		t.Errorf("%+v %v", slots[0], err)
	}
	if slots[1].Owner != 0 || slots[1].MemoryBytes != [pages.MaxCards]uint64{} {
		t.Errorf("%+v", slots[1])
	}
	if pair.Hold(t, 1); err != nil {
		t.Error(err) // the lock was given back, or Hold had failed
	}
}

// A tenant can cut his ledger short under us; that must be an error, where a mapping would end us.
func TestALedgerCutShortIsAnError(t *testing.T) {
	slice, pair := open(t, pages.Card{UUID: "GPU-0"})
	if err := os.Truncate(pair.Ledger, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := slice.Ledger(); err == nil || !strings.Contains(err.Error(), "cut short at byte 100") {
		t.Errorf("%v", err)
	}
	if _, err := slice.Slots(1); err == nil {
		t.Error("slots of nothing")
	}
	if _, err := slice.Clear(0, 1); err == nil {
		t.Error("cleared nothing")
	}
}

func TestReplacedPages(t *testing.T) {
	slice, pair := open(t, pages.Card{UUID: "GPU-0"})
	if slice.Replaced() {
		t.Error("nothing happened")
	}
	if err := os.WriteFile(pair.Ledger+".new", pages.NewLedger(), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(pair.Ledger+".new", pair.Ledger); err != nil || !slice.Replaced() {
		t.Errorf("a restarted container goes unnoticed (%v)", err)
	}
	if err := os.Remove(pair.Ledger); err != nil || !slice.Replaced() {
		t.Errorf("a container that ended goes unnoticed (%v)", err)
	}
}

func TestOpenNeedsBoth(t *testing.T) {
	pair := livetest.New(t, t.TempDir())
	for _, paths := range [][2]string{{pair.Config, "/nowhere"}, {"/nowhere", pair.Ledger}} {
		if _, err := Open(paths[0], paths[1]); err == nil {
			t.Errorf("%v opened", paths)
		}
	}
}
