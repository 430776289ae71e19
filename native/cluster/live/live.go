// SPDX-License-Identifier: Apache-2.0

// Package live reads and changes the two pages of a slice whose container runs.
//
// Both are read and written as files, never mapped: a tenant can cut its ledger page short, and an
// access to a mapping beyond the end of its file would end this process.
package live

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"flexai.io/xpu/cluster/pages"
)

const epochOffset = 8

// ErrBeingWritten says that somebody else is changing the config page at this moment.
var ErrBeingWritten = errors.New("config page is being written")

// Slice is an open pair of pages. Not safe for concurrent use.
type Slice struct {
	config, ledger         *os.File
	configPath, ledgerPath string
}

// Open opens the pages of a slice.
//
// The ledger's descriptor stays open as long as the slice is looked after: record locks of a process
// end when it closes any descriptor of the file, ours too while Clear holds one.
func Open(configPath, ledgerPath string) (*Slice, error) {
	config, err := os.OpenFile(configPath, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	// Regular files only: a fifo in its place would block us.
	ledger, err := os.OpenFile(ledgerPath, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		config.Close()
		return nil, err
	}
	return &Slice{config: config, ledger: ledger, configPath: configPath, ledgerPath: ledgerPath}, nil
}

// Close gives the files back.
func (s *Slice) Close() {
	s.config.Close()
	s.ledger.Close()
}

// Replaced says that the paths lead to other files now, or to none: the container started anew.
func (s *Slice) Replaced() bool {
	return isOther(s.config, s.configPath) || isOther(s.ledger, s.ledgerPath)
}

func isOther(file *os.File, path string) bool {
	open, err := file.Stat()
	if err != nil {
		return true
	}
	there, err := os.Stat(path)
	return err != nil || !os.SameFile(open, there)
}

// Config is the grant as it stands.
func (s *Slice) Config() (pages.Config, error) {
	_, config, err := s.read()
	return config, err
}

func (s *Slice) read() ([]byte, pages.Config, error) {
	page := make([]byte, pages.ConfigBytes)
	if err := readWhole(s.config, page, 0); err != nil {
		return nil, pages.Config{}, fmt.Errorf("%s: %w", s.configPath, err)
	}
	config, err := pages.Decode(page)
	if err != nil {
		return nil, config, fmt.Errorf("%s: %w", s.configPath, err)
	}
	if config.Epoch%2 != 0 {
		return page, config, ErrBeingWritten
	}
	return page, config, nil
}

// Change lets edit alter the cards of the config page and writes what it altered, in place, since
// processes have the page mapped. Nothing is written where nothing changed.
//
// The seqlock's rule: the epoch is odd while we write. An odd epoch is another writer's, or that of one
// who was killed; force takes the page over from the latter.
func (s *Slice) Change(edit func(cards []pages.Card), force bool) (bool, error) {
	page, config, err := s.read()
	if err != nil && !(force && errors.Is(err, ErrBeingWritten)) {
		return false, err
	}
	odd := config.Epoch | 1
	before := append([]pages.Card(nil), config.Cards...)
	edit(config.Cards)
	if config.Epoch%2 == 0 && equal(before, config.Cards) {
		return false, nil
	}
	config.Epoch = odd
	next, err := config.Encode()
	if err != nil {
		return false, fmt.Errorf("%s: %w", s.configPath, err)
	}
	pages.KeepReserved(next, page)
	for _, write := range []struct {
		bytes []byte
		at    int64
	}{{epoch(odd), epochOffset}, {next[epochOffset+4:], epochOffset + 4}, {epoch(odd + 1), epochOffset}} {
		if _, err := s.config.WriteAt(write.bytes, write.at); err != nil {
			return false, fmt.Errorf("%s: %w", s.configPath, err)
		}
	}
	return true, nil
}

func epoch(value uint32) []byte { return binary.LittleEndian.AppendUint32(nil, value) }

func equal(a, b []pages.Card) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// Ledger is what the slice's own account says, without its processes.
func (s *Slice) Ledger() (pages.LedgerHead, error) {
	head := make([]byte, pages.LedgerHeadBytes)
	if err := readWhole(s.ledger, head, 0); err != nil {
		return pages.LedgerHead{}, fmt.Errorf("%s: %w", s.ledgerPath, err)
	}
	return pages.DecodeLedgerHead(head)
}

// Slots are the first count process slots, free ones (Owner 0) included.
func (s *Slice) Slots(count int) ([]pages.Process, error) {
	all := make([]byte, count*pages.SlotBytes)
	if err := readWhole(s.ledger, all, pages.SlotOffset(0)); err != nil {
		return nil, fmt.Errorf("%s: %w", s.ledgerPath, err)
	}
	slots := make([]pages.Process, count)
	for i := range slots {
		slots[i] = pages.DecodeSlot(all[i*pages.SlotBytes:])
	}
	return slots, nil
}

// Holder is who holds the lock on a slot, by the kernel's word: a pid in our own pid namespace, 0 where
// that process can't be seen from it. held is false when the owner is dead.
func (s *Slice) Holder(slot int) (pid int, held bool, err error) {
	lock := slotLock(slot, unix.F_WRLCK)
	if err := unix.FcntlFlock(s.ledger.Fd(), unix.F_GETLK, &lock); err != nil {
		return 0, false, fmt.Errorf("%s: slot %d: %w", s.ledgerPath, slot, err)
	}
	if lock.Type == unix.F_UNLCK {
		return 0, false, nil
	}
	return max(int(lock.Pid), 0), true, nil
}

func slotLock(slot int, kind int16) unix.Flock_t {
	return unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: pages.SlotOffset(slot), Len: 1}
}

// Clear frees the slot of a dead owner. The lock comes first: between the question and now somebody may
// have moved in, and then it is his. False when there was nothing to clear.
func (s *Slice) Clear(slot int, owner uint64) (bool, error) {
	lock := slotLock(slot, unix.F_WRLCK)
	if err := unix.FcntlFlock(s.ledger.Fd(), unix.F_SETLK, &lock); err != nil {
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return false, nil
		}
		return false, fmt.Errorf("%s: slot %d: %w", s.ledgerPath, slot, err)
	}
	defer func() {
		lock.Type = unix.F_UNLCK
		_ = unix.FcntlFlock(s.ledger.Fd(), unix.F_SETLK, &lock)
	}()
	found, err := s.Slots(slot + 1)
	if err != nil || found[slot].Owner != owner {
		return false, err
	}
	// What it held goes before its name: killed in between, the next one clears it again.
	at := pages.SlotOffset(slot)
	if _, err := s.ledger.WriteAt(make([]byte, pages.SlotBytes-16), at+16); err != nil {
		return false, fmt.Errorf("%s: slot %d: %w", s.ledgerPath, slot, err)
	}
	if _, err := s.ledger.WriteAt(make([]byte, 8), at); err != nil {
		return false, fmt.Errorf("%s: slot %d: %w", s.ledgerPath, slot, err)
	}
	return true, nil
}

// readWhole treats a page that was cut short as damaged.
func readWhole(file *os.File, into []byte, at int64) error {
	if n, err := file.ReadAt(into, at); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("cut short at byte %d", at+int64(n))
		}
		return err
	}
	return nil
}
