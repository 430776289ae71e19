// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package cards

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"flexai.io/xpu/cluster/xpu"
)

// board is a card as a driver would tell of it.
type board struct {
	lost, mig bool
	nvlink    []string // the far end of each link: "switch", "off" or the bus of a card
}

const bus = 0x10 // of card 0; the next ones follow

// machine is a driver with these boards; cards 0 and 1 are below one bridge, 2 and 3 too.
func machine(boards ...board) *mock.Interface {
	devices := make([]*mock.Device, len(boards))
	for i, b := range boards {
		devices[i] = device(i, b)
	}
	for i := range devices {
		devices[i].GetTopologyCommonAncestorFunc = func(other nvml.Device) (nvml.GpuTopologyLevel, nvml.Return) {
			for j := range devices {
				if other == nvml.Device(devices[j]) && i/2 == j/2 {
					return nvml.TOPOLOGY_SINGLE, nvml.SUCCESS
				}
			}
			return nvml.TOPOLOGY_SYSTEM, nvml.SUCCESS
		}
	}
	return &mock.Interface{
		DeviceGetCountFunc: func() (int, nvml.Return) { return len(devices), nvml.SUCCESS },
		DeviceGetHandleByIndexFunc: func(index int) (nvml.Device, nvml.Return) {
			if boards[index].lost {
				return nil, nvml.ERROR_GPU_IS_LOST
			}
			return devices[index], nvml.SUCCESS
		},
		ErrorStringFunc: func(ret nvml.Return) string { return fmt.Sprint("error ", int(ret)) },
	}
}

func device(index int, b board) *mock.Device {
	pci := func(bus int) nvml.PciInfo { return nvml.PciInfo{Bus: uint32(bus)} }
	end := func(link int) string {
		if link < len(b.nvlink) {
			return b.nvlink[link]
		}
		return "off"
	}
	return &mock.Device{
		GetUUIDFunc:        func() (string, nvml.Return) { return fmt.Sprint("GPU-", index), nvml.SUCCESS },
		GetMinorNumberFunc: func() (int, nvml.Return) { return index, nvml.SUCCESS },
		GetNameFunc:        func() (string, nvml.Return) { return "NVIDIA A100-SXM4-40GB", nvml.SUCCESS },
		GetMemoryInfoFunc:  func() (nvml.Memory, nvml.Return) { return nvml.Memory{Total: 40 << 30}, nvml.SUCCESS },
		GetPciInfoFunc:     func() (nvml.PciInfo, nvml.Return) { return pci(bus + index), nvml.SUCCESS },
		GetMigModeFunc: func() (int, int, nvml.Return) {
			if b.mig {
				return nvml.DEVICE_MIG_ENABLE, nvml.DEVICE_MIG_ENABLE, nvml.SUCCESS
			}
			return 0, 0, nvml.ERROR_NOT_SUPPORTED
		},
		GetNvLinkStateFunc: func(link int) (nvml.EnableState, nvml.Return) {
			if end(link) == "off" {
				return nvml.FEATURE_DISABLED, nvml.SUCCESS
			}
			return nvml.FEATURE_ENABLED, nvml.SUCCESS
		},
		GetNvLinkRemoteDeviceTypeFunc: func(link int) (nvml.IntNvLinkDeviceType, nvml.Return) {
			if end(link) == "switch" {
				return nvml.NVLINK_DEVICE_TYPE_SWITCH, nvml.SUCCESS
			}
			return nvml.NVLINK_DEVICE_TYPE_GPU, nvml.SUCCESS
		},
		GetNvLinkRemotePciInfoFunc: func(link int) (nvml.PciInfo, nvml.Return) {
			var card int
			fmt.Sscan(end(link), &card)
			return pci(bus + card), nvml.SUCCESS
		},
	}
}

func find(t *testing.T, boards ...board) (cards []xpu.Card, log string) {
	t.Helper()
	var text bytes.Buffer
	finder := Finder{Split: 20, Log: slog.New(slog.NewTextHandler(&text, nil)), ShortNames: map[string]string{"NVIDIA A100-SXM4-40GB": "A100X"}}
	cards, err := finder.list(machine(boards...))
	if err != nil {
		t.Fatal(err)
	}
	return cards, text.String()
}

func TestTheTopologyMatrix(t *testing.T) {
	for name, test := range map[string]struct {
		boards []board
		want   string
	}{
		"PCIe alone":    {make([]board, 4), "0,50,10,10;50,0,10,10;10,10,0,50;10,10,50,0"},
		"one card":      {make([]board, 1), "0"},
		"NVLink pairs":  {[]board{{nvlink: []string{"1", "1", "off"}}, {nvlink: []string{"0", "0"}}, {}}, "0,70,10;70,0,10;10,10,0"},
		"NVLink switch": {[]board{{nvlink: []string{"switch", "switch"}}, {nvlink: []string{"switch", "switch"}}, {nvlink: []string{"switch"}}}, "0,70,60;70,0,60;60,60,0"},
	} {
		cards, _ := find(t, test.boards...)
		if got := xpu.TopologyValue(cards); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

func TestCardsThatCannotBeSlicedAreLeftOutAndNamed(t *testing.T) {
	cards, log := find(t, board{}, board{lost: true}, board{mig: true}, board{})
	if len(cards) != 2 || cards[0].UUID != "GPU-0" || cards[1].UUID != "GPU-3" || cards[1].Index != 3 {
		t.Errorf("%+v", cards)
	}
	for _, want := range []string{"card is lost; going on without it\" index=1", "MIG mode", "card=GPU-2"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
	if cards[0].Short() != "A100X" || cards[0].Split != 20 || cards[0].MemoryMiB != 40960 {
		t.Errorf("%+v", cards[0])
	}
}

func TestShortNamesAreAFileOfTheSite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "types.yaml")
	for text, want := range map[string]string{
		"NVIDIA A100-SXM4-40GB: A100\nTesla T4: T4\n": "",
		"{}":                             "",
		"NVIDIA A100: 'A,100'":           `short name "A,100" of "NVIDIA A100"`,
		"NVIDIA A100: [A100]":            "is no YAML of lines",
		"NVIDIA A100: A\nNVIDIA A100: B": "is no YAML of lines",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		names, err := LoadShortNames(path)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, %v; want %q", text, names, err, want)
		}
	}
	if _, err := LoadShortNames(path + "x"); err == nil {
		t.Error("a missing file is taken")
	}
}
