// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"flexai.io/xpu/cluster/xpu"
)

// grown is a ledger of count slices.
func grown(t *testing.T, count int) xpu.Ledger {
	t.Helper()
	var slices []xpu.Slice
	for i := range count {
		one := slice
		one.Key, one.Owner.PodUID, one.Tokens = fmt.Sprintf("s%d", i), fmt.Sprintf("u%d", i), []string{fmt.Sprintf("t%d", i)}
		one.Shares = []xpu.Share{{UUID: "GPU-0", VID: i, CoresPercent: 1, MemoryMiB: 64}}
		slices = append(slices, one)
	}
	return ledger(t, slices...)
}

func save(t *testing.T, s *Store, l xpu.Ledger) {
	t.Helper()
	if err := s.Transact(func(xpu.Ledger) error { return s.Save(l) }); err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, s *Store, want xpu.Ledger, what string) {
	t.Helper()
	if got, err := s.Load(); err != nil || !reflect.DeepEqual(got.Slices(), want.Slices()) {
		t.Errorf("%s: %d slices, %v; want %d", what, len(got.Slices()), err, len(want.Slices()))
	}
}

// Killed, or without power, between the journal and the ledger's file: what was promised stands, and the next
// start makes the file say it.
func TestTheJournalIsAheadOfAFileThatWasNotWrittenAnyMore(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, file, older string){
		"the file is the one before": func(t *testing.T, file, older string) { write(t, file, older) },
		"the file is empty":          func(t *testing.T, file, _ string) { write(t, file, "") },
		"the file is gone": func(t *testing.T, file, _ string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, paths := open(t)
			save(t, s, grown(t, 1))
			older := read(t, s.ledgerFile())
			save(t, s, grown(t, 2))
			lose(t, s.ledgerFile(), older)
			holds(t, s, grown(t, 2), "the running store")
			again, err := Open(paths)
			if err != nil {
				t.Fatal(err)
			}
			holds(t, again, grown(t, 2), "after a start")
			if text := read(t, s.ledgerFile()); !strings.Contains(text, `"u1"`) {
				t.Errorf("the file still says %s", text)
			}
			save(t, again, grown(t, 3))
			holds(t, again, grown(t, 3), "the next change")
		})
	}
}

// A write that broke off at any byte leaves the ledger of before or, whole, the new one.
func TestAWriteTornAtAnyByteLeavesTheLedgerOfBefore(t *testing.T) {
	s, paths := open(t)
	save(t, s, grown(t, 1))
	save(t, s, grown(t, 2))
	before, file := read(t, s.journal.path), read(t, s.ledgerFile())
	save(t, s, grown(t, 3))
	after := read(t, s.journal.path)
	write(t, s.ledgerFile(), file)
	start := placeBytes // sequence 3 is in the second place
	end := start
	for end < len(after) && after[end:] != before[end:] {
		end++
	}
	for torn := start; torn < end; torn += 7 {
		write(t, s.journal.path, after[:torn]+before[torn:])
		fresh := At(paths)
		got, err := fresh.Load()
		if err != nil || len(got.Slices()) != 2 {
			t.Fatalf("torn at %d: %d slices, %v", torn-start, len(got.Slices()), err)
		}
	}
	write(t, s.journal.path, after)
	holds(t, At(paths), grown(t, 3), "whole")
}

func TestALedgerThatAnOlderReleaseWroteCounts(t *testing.T) {
	s, paths := open(t)
	save(t, s, grown(t, 3))
	write(t, s.ledgerFile(), `{"version": 1, "slices": []}`)
	holds(t, s, grown(t, 0), "after a downgrade")
	again, err := Open(paths)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, again, grown(t, 0), "after the upgrade")
	save(t, again, grown(t, 1))
	holds(t, At(paths), grown(t, 1), "the next change")
}

func TestALedgerTooLongForTheJournalIsKeptAllTheSame(t *testing.T) {
	s, paths := open(t)
	save(t, s, grown(t, 1))
	const many = 3000
	save(t, s, grown(t, many))
	if info, err := os.Stat(s.ledgerFile()); err != nil || info.Size() < placeBytes {
		t.Fatalf("this ledger isn't too long: %v, %v", info.Size(), err)
	}
	holds(t, At(paths), grown(t, many), "too long")
	save(t, s, grown(t, 2))
	holds(t, At(paths), grown(t, 2), "short again")
}

func TestADamagedJournalIsMadeAnew(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "half": strings.Repeat("x", placeBytes), "foreign": strings.Repeat("x", 2*placeBytes)} {
		s, paths := open(t)
		save(t, s, grown(t, 1))
		write(t, s.journal.path, text)
		holds(t, At(paths), grown(t, 1), name)
		save(t, s, grown(t, 2))
		if err := os.Remove(filepath.Join(paths.State, "ledger.json")); err != nil {
			t.Fatal(err)
		}
		holds(t, At(paths), grown(t, 2), name+", then written")
	}
}

func FuzzJournal(f *testing.F) {
	whole := append(head{1, 2, sum(1, []byte("{}"))}.encode(), "{}"...)
	for _, seed := range [][]byte{nil, whole, whole[:20], []byte(journalMagic)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "journal")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		found, sequence, err := journal{path}.last(0)
		if err != nil || (found == nil) != (sequence == 0) {
			t.Fatalf("%q, %d, %v", found, sequence, err)
		}
		for place := range 2 {
			if start := place * placeBytes; found != nil && len(text) >= start+headBytes {
				h, ok := decodeHead(text[start:])
				if ok && h.sequence == sequence && h.sum == sum(sequence, found) {
					return
				}
			}
		}
		if found != nil {
			t.Errorf("%q stands behind no head of its own", found)
		}
	})
}
