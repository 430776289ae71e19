// SPDX-License-Identifier: Apache-2.0

// Package pages writes and reads the two shared pages of a slice. The layout is fixed by
// native/common/include/xpu/pages.h and pinned by native/common/vectors/pages.json.
package pages

import (
	"encoding/binary"
	"fmt"
)

// Sizes and offsets of pages.h.
const (
	ConfigBytes = 2112
	LedgerBytes = 100416
	MaxCards    = 16
	UUIDBytes   = 48

	configMagic = 0x43555058
	ledgerMagic = 0x4c555058
	version     = 1

	cardsOffset  = 64
	cardBytes    = 128
	memoryOffset = 48
	tauOffset    = 56
	coresOffset  = 64
	modeOffset   = 68
	weightOffset = 72
	trimOffset   = 76
	vidOffset    = 80

	effectiveOffset   = 84
	overheadOffset    = 88
	contextOffset     = 96
	flagsOffset       = 104
	frameOffset       = 108
	windowStartOffset = 112
	windowOffset      = 116
)

// TrimOne is a trim of 1.0 in 16.16 fixed point.
const TrimOne = 1 << 16

// Mode is how a card's compute limit is enforced.
type Mode uint32

// The modes of enum xpu_mode.
const (
	ModeNone Mode = iota
	ModeHard
	ModeElastic
	ModeFixedShare
	ModePriority
)

// Flags of a card.
const (
	FlagPaused uint32 = 1 << iota
	FlagOversubscribe
)

// Card is one entry of the config page; pages.h says what the fields mean.
type Card struct {
	UUID         string
	MemoryBytes  uint64
	TauNs        uint64
	CoresPercent uint32
	Mode         Mode
	Weight       uint32
	TrimQ16      uint32
	VID          uint32

	EffectiveQ16  uint32
	OverheadBytes uint64
	ContextBytes  uint64
	Flags         uint32
	FrameUs       uint32
	WindowStartUs uint32
	WindowUs      uint32
}

// Config is a config page.
type Config struct {
	Epoch uint32
	Cards []Card
}

// Encode lays the page out.
func (c Config) Encode() ([]byte, error) {
	if len(c.Cards) > MaxCards {
		return nil, fmt.Errorf("%d cards in one slice; the config page holds %d", len(c.Cards), MaxCards)
	}
	page := make([]byte, ConfigBytes)
	order := binary.LittleEndian
	order.PutUint32(page[0:], configMagic)
	order.PutUint32(page[4:], version)
	order.PutUint32(page[8:], c.Epoch)
	order.PutUint32(page[12:], uint32(len(c.Cards)))
	for i, card := range c.Cards {
		if len(card.UUID) >= UUIDBytes {
			return nil, fmt.Errorf("card UUID %q has %d bytes; the config page holds %d",
				card.UUID, len(card.UUID), UUIDBytes-1)
		}
		card.put(page[cardsOffset+i*cardBytes:])
	}
	return page, nil
}

func (c Card) put(entry []byte) {
	order := binary.LittleEndian
	copy(entry, c.UUID)
	order.PutUint64(entry[memoryOffset:], c.MemoryBytes)
	order.PutUint64(entry[tauOffset:], c.TauNs)
	order.PutUint32(entry[coresOffset:], c.CoresPercent)
	order.PutUint32(entry[modeOffset:], uint32(c.Mode))
	order.PutUint32(entry[weightOffset:], c.Weight)
	order.PutUint32(entry[trimOffset:], c.TrimQ16)
	order.PutUint32(entry[vidOffset:], c.VID)
	order.PutUint32(entry[effectiveOffset:], c.EffectiveQ16)
	order.PutUint64(entry[overheadOffset:], c.OverheadBytes)
	order.PutUint64(entry[contextOffset:], c.ContextBytes)
	order.PutUint32(entry[flagsOffset:], c.Flags)
	order.PutUint32(entry[frameOffset:], c.FrameUs)
	order.PutUint32(entry[windowStartOffset:], c.WindowStartUs)
	order.PutUint32(entry[windowOffset:], c.WindowUs)
}

// NewLedger is a ledger page in which nothing has been used.
func NewLedger() []byte {
	page := make([]byte, LedgerBytes)
	binary.LittleEndian.PutUint32(page[0:], ledgerMagic)
	binary.LittleEndian.PutUint32(page[4:], version)
	return page
}
