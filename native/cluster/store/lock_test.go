// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"flexai.io/xpu/cluster/xpu"
)

func TestAChangeSeesWhatTheOneBeforeItWrote(t *testing.T) {
	_, paths := open(t)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			own, err := Open(paths) // as another process has it
			if err != nil {
				t.Error(err)
				return
			}
			err = own.Transact(func(ledger xpu.Ledger) error {
				next, _, _, err := ledger.Reserve(cards, xpu.Claim{Owner: xpu.Owner{PodUID: "u", Container: time.Now().String()},
					Tokens: []string{time.Now().String()}, Ask: xpu.Ask{Cards: 1, CoresPercent: 5, MemoryMiB: 100}})
				return errors.Join(err, own.Save(next))
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if held, err := Read(paths); err != nil || len(held.Slices()) != 20 {
		t.Errorf("%d slices of 20, %v", len(held.Slices()), err)
	}
}

func TestAWaitForTheLedgerIsBoundedAndNamesTheHolder(t *testing.T) {
	s, paths := open(t)
	s.wait = 20 * time.Millisecond
	held, err := take(s.ledgerLock())
	if err != nil {
		t.Fatal(err)
	}
	called := false
	err = s.Transact(func(xpu.Ledger) error { called = true; return nil })
	if called || err == nil || !strings.Contains(err.Error(), paths.State+"/ledger.lock") || !strings.Contains(err.Error(), "pid ") {
		t.Errorf("called %t, %v", called, err)
	}
	held.release()
	if err := s.Transact(func(xpu.Ledger) error { return errors.New("mine") }); err == nil || err.Error() != "mine" {
		t.Errorf("%v", err)
	}
	if err := s.Transact(func(xpu.Ledger) error { return nil }); err != nil {
		t.Errorf("an error kept the lock: %v", err)
	}
}

func TestOneProcessLooksAfterTheSlices(t *testing.T) {
	_, paths := open(t)
	release, err := paths.TakeTending()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := paths.TakeTending(); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "pid ") {
		t.Errorf("%v", err)
	}
	release()
	again, err := paths.TakeTending()
	if err != nil {
		t.Fatal(err)
	}
	again()
}
