// SPDX-License-Identifier: Apache-2.0

// Package pages writes and reads the two shared pages of a slice. The layout is fixed by
// native/common/include/xpu/pages.h and pinned by native/common/vectors/pages.json.
package pages

import (
	"bytes"
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
	reservedOffset    = 120

	cardUseBytes = 128
	slotBytes    = 384
	slotsOffset  = cardsOffset + MaxCards*cardUseBytes
)

// Sizes of what is read of a ledger page.
const (
	MaxProcesses    = 256
	LedgerHeadBytes = slotsOffset
	SlotBytes       = slotBytes
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

// Share is the share in force, in percent.
func (c Card) Share() float64 {
	if c.EffectiveQ16 == 0 {
		return float64(c.CoresPercent)
	}
	return float64(c.EffectiveQ16) / TrimOne
}

// Trim is the trim in force; 0 reads as 1.
func (c Card) Trim() float64 {
	if c.TrimQ16 == 0 {
		return 1
	}
	return float64(c.TrimQ16) / TrimOne
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

// KeepReserved copies what this version gives no meaning to from an old page into a new one.
func KeepReserved(page, from []byte) {
	copy(page[16:cardsOffset], from[16:cardsOffset])
	for i := range MaxCards {
		at := cardsOffset + i*cardBytes + reservedOffset
		copy(page[at:cardsOffset+(i+1)*cardBytes], from[at:])
	}
}

// Decode reads a page. A page whose epoch is odd is being written, and says nothing yet.
func Decode(page []byte) (Config, error) {
	order := binary.LittleEndian
	if err := checkPage(page, ConfigBytes, configMagic); err != nil {
		return Config{}, fmt.Errorf("config page: %w", err)
	}
	count := order.Uint32(page[12:])
	if count > MaxCards {
		return Config{}, fmt.Errorf("config page: %d cards; it holds %d", count, MaxCards)
	}
	config := Config{Epoch: order.Uint32(page[8:])}
	for i := range int(count) {
		config.Cards = append(config.Cards, card(page[cardsOffset+i*cardBytes:]))
	}
	return config, nil
}

func checkPage(page []byte, size int, magic uint32) error {
	order := binary.LittleEndian
	if len(page) < size {
		return fmt.Errorf("%d bytes; it has %d", len(page), size)
	}
	if got := order.Uint32(page[0:]); got != magic {
		return fmt.Errorf("magic %#x; it is %#x", got, magic)
	}
	if got := order.Uint32(page[4:]); got != version {
		return fmt.Errorf("version %d; this program knows %d", got, version)
	}
	return nil
}

func card(entry []byte) Card {
	order := binary.LittleEndian
	uuid, _, _ := bytes.Cut(entry[:UUIDBytes], []byte{0})
	return Card{
		UUID:         string(uuid),
		MemoryBytes:  order.Uint64(entry[memoryOffset:]),
		TauNs:        order.Uint64(entry[tauOffset:]),
		CoresPercent: order.Uint32(entry[coresOffset:]),
		Mode:         Mode(order.Uint32(entry[modeOffset:])),
		Weight:       order.Uint32(entry[weightOffset:]),
		TrimQ16:      order.Uint32(entry[trimOffset:]),
		VID:          order.Uint32(entry[vidOffset:]),

		EffectiveQ16:  order.Uint32(entry[effectiveOffset:]),
		OverheadBytes: order.Uint64(entry[overheadOffset:]),
		ContextBytes:  order.Uint64(entry[contextOffset:]),
		Flags:         order.Uint32(entry[flagsOffset:]),
		FrameUs:       order.Uint32(entry[frameOffset:]),
		WindowStartUs: order.Uint32(entry[windowStartOffset:]),
		WindowUs:      order.Uint32(entry[windowOffset:]),
	}
}

// CardUse is one card of a ledger page; pages.h says what the fields mean. A tenant can write them.
type CardUse struct {
	TatNs       int64
	ChargedNs   uint64
	ThrottledNs uint64
	MemoryBytes uint64
	Denied      uint64
	Launches    uint64
}

// LedgerHead is a ledger page without its process slots.
type LedgerHead struct {
	SlotsUsed int
	Cards     [MaxCards]CardUse
}

// DecodeLedgerHead reads the first LedgerHeadBytes of a ledger page.
func DecodeLedgerHead(page []byte) (LedgerHead, error) {
	order := binary.LittleEndian
	if err := checkPage(page, LedgerHeadBytes, ledgerMagic); err != nil {
		return LedgerHead{}, fmt.Errorf("ledger page: %w", err)
	}
	head := LedgerHead{SlotsUsed: int(min(order.Uint32(page[8:]), MaxProcesses))}
	for i := range head.Cards {
		at := page[cardsOffset+i*cardUseBytes:]
		head.Cards[i] = CardUse{TatNs: int64(order.Uint64(at[0:])), ChargedNs: order.Uint64(at[8:]),
			ThrottledNs: order.Uint64(at[16:]), MemoryBytes: order.Uint64(at[24:]),
			Denied: order.Uint64(at[32:]), Launches: order.Uint64(at[40:])}
	}
	return head, nil
}

// Process is one occupied slot of a ledger page.
type Process struct {
	Owner       uint64
	PID         int // in the container
	MemoryBytes [MaxCards]uint64
	ChargedNs   [MaxCards]uint64
}

// SlotOffset is where a slot lies in its file, and the byte that its owner holds a lock on.
func SlotOffset(slot int) int64 { return int64(slotsOffset + slot*slotBytes) }

// DecodeSlot reads the SlotBytes of a slot; Owner 0 is a free one.
func DecodeSlot(slot []byte) Process {
	order := binary.LittleEndian
	found := Process{Owner: order.Uint64(slot), PID: int(order.Uint32(slot[8:]))}
	for i := range MaxCards {
		found.MemoryBytes[i] = order.Uint64(slot[16+8*i:])
		found.ChargedNs[i] = order.Uint64(slot[16+8*MaxCards+8*i:])
	}
	return found
}

// NewLedger is a ledger page in which nothing has been used.
func NewLedger() []byte {
	page := make([]byte, LedgerBytes)
	binary.LittleEndian.PutUint32(page[0:], ledgerMagic)
	binary.LittleEndian.PutUint32(page[4:], version)
	return page
}
