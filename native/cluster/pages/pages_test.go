// SPDX-License-Identifier: Apache-2.0

package pages

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"regexp"
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
