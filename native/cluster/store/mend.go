// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"flexai.io/xpu/cluster/cdi"
	"flexai.io/xpu/cluster/pages"
	"flexai.io/xpu/cluster/xpu"
)

// A slice of a pod gets its files anew at each start. One of the host keeps them from its registration
// on, through kills of whoever wrote them and through reboots, so here is what tells whether they stand.

func same(found, wanted []byte) bool { return bytes.Equal(found, wanted) }
func there(_, _ []byte) bool         { return true }

// isConfig leaves a page alone that processes may have mapped; what it grants is changed in place.
func isConfig(found, wanted []byte) bool {
	is, err := pages.Decode(found)
	if err != nil {
		return false
	}
	ought, err := pages.Decode(wanted)
	return err == nil && len(is.Cards) == len(ought.Cards) && is.Cards[0].UUID == ought.Cards[0].UUID
}

func isLedger(found, _ []byte) bool {
	_, err := pages.DecodeLedgerHead(found)
	return err == nil && len(found) == pages.LedgerBytes
}

// Lacking are the files of a slice that are missing, damaged, or not what the ledger says.
func (s *Store) Lacking(slice xpu.Slice) ([]string, error) {
	lacking, err := s.lacking(slice)
	paths := make([]string, 0, len(lacking))
	for _, file := range lacking {
		paths = append(paths, file.path)
	}
	return paths, err
}

// Mend writes what Lacking names. Whatever else a slice has, processes that run included, stays.
func (s *Store) Mend(slice xpu.Slice) error {
	lacking, err := s.lacking(slice)
	if err != nil {
		return err
	}
	return s.write(slice, lacking)
}

func (s *Store) lacking(slice xpu.Slice) ([]content, error) {
	if err := checkNames(slice); err != nil {
		return nil, err
	}
	files, err := s.files(slice)
	if err != nil {
		return nil, err
	}
	var lacking []content
	for _, file := range files {
		found, err := os.ReadFile(file.path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err != nil || !file.stands(found, file.bytes) {
			lacking = append(lacking, file)
		}
	}
	return lacking, nil
}

// CDIStands says whether WriteCDI would change nothing, or why it couldn't.
func (s *Store) CDIStands(ledger xpu.Ledger, cards []xpu.Card) (bool, error) {
	wanted, err := s.cdiFile(ledger, cards)
	return err == nil && wanted.is(), err
}

// EntryStands says whether a runtime finds a slice's entry as WriteCDI would make it, whatever the file says of
// others.
func (s *Store) EntryStands(slice xpu.Slice, cards []xpu.Card) (bool, error) {
	alone, err := xpu.NewLedger([]xpu.Slice{slice})
	if err != nil {
		return false, err
	}
	wanted, err := s.cdiFile(alone, cards)
	if err != nil {
		return false, err
	}
	ought, err := cdi.Entries(wanted.bytes)
	if err != nil {
		return false, err
	}
	found, err := s.own.Read()
	if err != nil {
		return false, nil // WriteCDI mends that
	}
	entry, there := found[slice.Key]
	return there && entry == ought[slice.Key], nil
}

// DropCDI takes one slice's entry away. It needs neither a driver nor its CDI spec: a slice must be able
// to end after both.
func (s *Store) DropCDI(key string) error {
	text, err := os.ReadFile(s.paths.CDI)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	without, err := cdi.Without(text, key)
	if err != nil {
		return fmt.Errorf("%s: %w; remove the file, the next slice writes it anew", s.paths.CDI, err)
	}
	if bytes.Equal(without, text) {
		return nil
	}
	return writeWhole(s.paths.CDI, without, 0o644)
}

// Basis changes with what the entries of all slices rest on beside ledger and cards: the vendor's spec
// and our release.
func (s *Store) Basis() string {
	text, _ := os.ReadFile(s.paths.BaseCDI) // missing is a basis, too
	runtime, err := s.runtime()
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\x00%+v\x00%v", text, runtime, err)
	return hex.EncodeToString(sum.Sum(nil))
}
