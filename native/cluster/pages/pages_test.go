// SPDX-License-Identifier: Apache-2.0

package pages

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

type vectors struct {
	ConfigBytes int `json:"config_bytes"`
	LedgerBytes int `json:"ledger_bytes"`
	Config      []struct {
		Name  string
		Epoch uint32
		Cards []struct {
			UUID         string
			MemoryBytes  uint64 `json:"memory_bytes"`
			TauNs        uint64 `json:"tau_ns"`
			CoresPercent uint32 `json:"cores_percent"`
			Mode         Mode
			Weight       uint32
			TrimQ16      uint32 `json:"trim_q16"`
			VID          uint32

			EffectiveQ16  uint32 `json:"effective_q16"`
			OverheadBytes uint64 `json:"overhead_bytes"`
			ContextBytes  uint64 `json:"context_bytes"`
			Flags         uint32
			FrameUs       uint32 `json:"frame_us"`
			WindowStartUs uint32 `json:"window_start_us"`
			WindowUs      uint32 `json:"window_us"`
		}
		BytesHex string `json:"bytes_hex"`
	}
}

func readVectors(t *testing.T) vectors {
	t.Helper()
	text, err := os.ReadFile("../../common/vectors/pages.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestConfigPagesAreTheVectors(t *testing.T) {
	v := readVectors(t)
	if v.ConfigBytes != ConfigBytes || v.LedgerBytes != LedgerBytes {
		t.Fatalf("vectors say pages of %d and %d bytes, this package %d and %d",
			v.ConfigBytes, v.LedgerBytes, ConfigBytes, LedgerBytes)
	}
	if len(v.Config) == 0 {
		t.Fatal("no vectors")
	}
	for _, vector := range v.Config {
		t.Run(vector.Name, func(t *testing.T) {
			config := Config{Epoch: vector.Epoch}
			for _, card := range vector.Cards {
				config.Cards = append(config.Cards, Card(card))
			}
			page, err := config.Encode()
			if err != nil {
				t.Fatal(err)
			}
			want, err := hex.DecodeString(vector.BytesHex)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, make([]byte, ConfigBytes-len(want))...)
			if string(page) != string(want) {
				t.Errorf("page differs:\n got %x\nwant %x", page, want)
			}
			read, err := Decode(page)
			if err != nil || read.Epoch != config.Epoch || !slices.Equal(read.Cards, config.Cards) {
				t.Errorf("read back %+v (%v), want %+v", read, err, config)
			}
		})
	}
}

// The header asserts its offsets for C; this asserts that Go's constants are the same numbers.
func TestOffsetsAreTheHeaders(t *testing.T) {
	header, err := os.ReadFile("../../common/include/xpu/pages.h")
	if err != nil {
		t.Fatal(err)
	}
	asserted := map[string]int{}
	pattern := regexp.MustCompile(`XPU_STATIC_ASSERT\((offsetof|sizeof)\(struct (\w+)(?:, (\w+))?\) == (\d+)\)`)
	for _, found := range pattern.FindAllStringSubmatch(string(header), -1) {
		value, _ := strconv.Atoi(found[4])
		asserted[strings.Join(found[1:4], " ")] = value
	}
	for what, want := range map[string]int{
		"sizeof xpu_card_config ":                  cardBytes,
		"offsetof xpu_card_config memory_bytes":    memoryOffset,
		"offsetof xpu_card_config tau_ns":          tauOffset,
		"offsetof xpu_card_config cores_percent":   coresOffset,
		"offsetof xpu_card_config mode":            modeOffset,
		"offsetof xpu_card_config weight":          weightOffset,
		"offsetof xpu_card_config trim_q16":        trimOffset,
		"offsetof xpu_card_config vid":             vidOffset,
		"offsetof xpu_card_config effective_q16":   effectiveOffset,
		"offsetof xpu_card_config overhead_bytes":  overheadOffset,
		"offsetof xpu_card_config context_bytes":   contextOffset,
		"offsetof xpu_card_config flags":           flagsOffset,
		"offsetof xpu_card_config frame_us":        frameOffset,
		"offsetof xpu_card_config window_start_us": windowStartOffset,
		"offsetof xpu_card_config window_us":       windowOffset,
		"offsetof xpu_config_page card":            cardsOffset,
		"sizeof xpu_config_page ":                  ConfigBytes,
		"sizeof xpu_ledger_page ":                  LedgerBytes,
		"sizeof xpu_card_ledger ":                  cardUseBytes,
		"sizeof xpu_process_slot ":                 slotBytes,
		"offsetof xpu_ledger_page card":            cardsOffset,
		"offsetof xpu_ledger_page process":         slotsOffset,
	} {
		if got, ok := asserted[what]; !ok || got != want {
			t.Errorf("%s: header asserts %d (found: %t), this package has %d", what, got, ok, want)
		}
	}
}

func TestConfigRefusesWhatThePageCannotHold(t *testing.T) {
	if _, err := (Config{Cards: make([]Card, MaxCards+1)}).Encode(); err == nil {
		t.Error("17 cards were accepted")
	}
	long := Card{UUID: strings.Repeat("x", UUIDBytes)}
	if _, err := (Config{Cards: []Card{long}}).Encode(); err == nil {
		t.Error("a UUID without room for its NUL was accepted")
	}
}

func TestLedgerIsReadWhereTheHeaderSaysItLies(t *testing.T) {
	page := NewLedger()
	order := binary.LittleEndian
	order.PutUint32(page[8:], 2)
	for i, value := range []uint64{uint64(1<<63 | 5), 11, 12, 13, 14, 15} {
		order.PutUint64(page[cardsOffset+3*cardUseBytes+8*i:], value)
	}
	order.PutUint64(page[SlotOffset(1):], 77)
	order.PutUint32(page[SlotOffset(1)+8:], 42)
	order.PutUint64(page[SlotOffset(1)+16+8*2:], 1000)
	order.PutUint64(page[SlotOffset(1)+16+8*MaxCards+8*15:], 2000)
	head, err := DecodeLedgerHead(page)
	negative := int64(-1<<63 + 5)
	if want := (CardUse{negative, 11, 12, 13, 14, 15}); err != nil || head.SlotsUsed != 2 || head.Cards[3] != want {
		t.Errorf("%d slots, card %+v (%v), want 2, %+v", head.SlotsUsed, head.Cards[3], err, want)
	}
	slot := DecodeSlot(page[SlotOffset(1):])
	if slot.Owner != 77 || slot.PID != 42 || slot.MemoryBytes[2] != 1000 || slot.ChargedNs[15] != 2000 {
		t.Errorf("slot %+v", slot)
	}
}

// What a tenant or a torn write can leave must be an error, never an index out of range.
func TestDamagedPagesAreErrors(t *testing.T) {
	config, err := Config{Cards: []Card{{UUID: "GPU-0"}}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	damage := func(page []byte, at int, value uint32) []byte {
		page = slices.Clone(page)
		binary.LittleEndian.PutUint32(page[at:], value)
		return page
	}
	for name, page := range map[string][]byte{"empty": nil, "short": config[:ConfigBytes-1],
		"magic": damage(config, 0, ledgerMagic), "version": damage(config, 4, 2), "cards": damage(config, 12, MaxCards+1)} {
		if _, err := Decode(page); err == nil {
			t.Errorf("%s: config accepted", name)
		}
	}
	ledger := NewLedger()
	for name, page := range map[string][]byte{"empty": nil, "short": ledger[:LedgerHeadBytes-1],
		"magic": damage(ledger, 0, configMagic), "version": damage(ledger, 4, 0)} {
		if _, err := DecodeLedgerHead(page); err == nil {
			t.Errorf("%s: ledger accepted", name)
		}
	}
	if head, err := DecodeLedgerHead(damage(ledger, 8, 1<<31)); err != nil || head.SlotsUsed != MaxProcesses {
		t.Errorf("slots used %d, %v", head.SlotsUsed, err)
	}
}

func TestShareAndTrimInForce(t *testing.T) {
	if card := (Card{CoresPercent: 30}); card.Share() != 30 || card.Trim() != 1 {
		t.Errorf("%v %v", card.Share(), card.Trim())
	}
	if card := (Card{CoresPercent: 30, EffectiveQ16: 75 << 15, TrimQ16: 1 << 15}); card.Share() != 37.5 || card.Trim() != 0.5 {
		t.Errorf("%v %v", card.Share(), card.Trim())
	}
}

// Whatever lies in a page, reading it ends with a value or an error, and what was read is written alike.
func FuzzDecode(f *testing.F) {
	page, err := Config{Epoch: 2, Cards: []Card{{UUID: "GPU-0", CoresPercent: 20}}}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(page)
	f.Add(NewLedger())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, page []byte) {
		if config, err := Decode(page); err == nil {
			again, err := config.Encode()
			if err != nil && len(config.Cards) <= MaxCards && !slices.ContainsFunc(config.Cards,
				func(card Card) bool { return len(card.UUID) >= UUIDBytes }) {
				t.Fatal(err)
			}
			if second, failed := Decode(again); err == nil && (failed != nil || !slices.Equal(second.Cards, config.Cards)) {
				t.Fatalf("%+v became %+v (%v)", config, second, failed)
			}
		}
		if head, err := DecodeLedgerHead(page); err == nil && head.SlotsUsed > MaxProcesses {
			t.Fatalf("%d slots", head.SlotsUsed)
		}
	})
}
