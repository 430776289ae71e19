// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package cards

import (
	"bytes"
	"encoding/json"
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
	lost   bool
	nvlink []string   // the far end of each link: "switch", "off" or the bus of a card
	mig    []instance // nil: not in MIG mode
}

// instance is a MIG instance of a board.
type instance struct {
	gi, ci  int
	mib     uint64
	compute uint32
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
			if b.mig != nil {
				return nvml.DEVICE_MIG_ENABLE, nvml.DEVICE_MIG_ENABLE, nvml.SUCCESS
			}
			return 0, 0, nvml.ERROR_NOT_SUPPORTED
		},
		GetMaxMigDeviceCountFunc: func() (int, nvml.Return) { return 7, nvml.SUCCESS },
		GetMigDeviceHandleByIndexFunc: func(place int) (nvml.Device, nvml.Return) {
			if place >= len(b.mig) {
				return nil, nvml.ERROR_NOT_FOUND
			}
			return part(index, b.mig[place]), nvml.SUCCESS
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

// part is an instance of the card with this index.
func part(card int, i instance) *mock.Device {
	return &mock.Device{
		GetUUIDFunc:              func() (string, nvml.Return) { return fmt.Sprintf("MIG-%d-%d-%d", card, i.gi, i.ci), nvml.SUCCESS },
		GetMemoryInfoFunc:        func() (nvml.Memory, nvml.Return) { return nvml.Memory{Total: i.mib << 20}, nvml.SUCCESS },
		GetGpuInstanceIdFunc:     func() (int, nvml.Return) { return i.gi, nvml.SUCCESS },
		GetComputeInstanceIdFunc: func() (int, nvml.Return) { return i.ci, nvml.SUCCESS },
		GetAttributesFunc: func() (nvml.DeviceAttributes, nvml.Return) {
			return nvml.DeviceAttributes{MemorySizeMB: i.mib, GpuInstanceSliceCount: i.compute, ComputeInstanceSliceCount: i.compute}, nvml.SUCCESS
		},
		GetNvLinkStateFunc: func(int) (nvml.EnableState, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED },
		GetPciInfoFunc:     func() (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{}, nvml.ERROR_NOT_SUPPORTED },
	}
}

func find(t *testing.T, boards ...board) (cards []xpu.Card, log string) {
	t.Helper()
	var text bytes.Buffer
	finder := Finder{Split: 20, Proc: procWith(t, minors(len(boards))), Log: slog.New(slog.NewTextHandler(&text, nil)), ShortNames: map[string]string{"NVIDIA A100-SXM4-40GB": "A100X"}}
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
	cards, log := find(t, board{}, board{lost: true}, board{mig: []instance{}}, board{},
		board{mig: []instance{{gi: 1, mib: 19968, compute: 3}, {gi: 2, ci: 0, mib: 19968, compute: 3}, {gi: 2, ci: 1, mib: 19968, compute: 3}}})
	var uuids []string
	for _, card := range cards {
		uuids = append(uuids, fmt.Sprint(card.UUID, "@", card.Index))
	}
	if got := strings.Join(uuids, " "); got != "GPU-0@0 GPU-3@3 MIG-4-1-0@500" {
		t.Error(got)
	}
	for _, want := range []string{"card is lost; going on without it\" index=1", "is in MIG mode and has no instance", "card=GPU-2",
		"shares the memory of its GPU instance", "card=MIG-4-2-0", "card=MIG-4-2-1"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
	if cards[0].Short() != "A100X" || cards[0].Split != 20 || cards[0].MemoryMiB != 40960 {
		t.Errorf("%+v", cards[0])
	}
}

func TestAnInstanceIsACardOfItsOwn(t *testing.T) {
	cards, _ := find(t, board{}, board{mig: []instance{{gi: 2, mib: 19968, compute: 3}, {gi: 9, mib: 4864, compute: 1}}})
	if len(cards) != 3 {
		t.Fatalf("%+v", cards)
	}
	got, _ := json.Marshal(cards[2])
	want := `{"uuid":"MIG-1-9-0","index":201,"minor":1,"memory_mib":4864,"model":"NVIDIA A100-SXM4-40GB MIG 1g.5gb","numa":-1,` +
		`"healthy":true,"split":20,"instance":{"parent":"GPU-1","gpu_instance":9,"compute_instance":0,"profile":"1g.5gb",` +
		`"capabilities":[219,220]}}`
	if string(got) != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if cards[1].Instance.Profile != "3g.20gb" || cards[2].Short() != "A100-MIG-1g.5gb" {
		t.Errorf("%+v %s", cards[1].Instance, cards[2].Short())
	}
	if got := xpu.TopologyValue(cards); got != "0,0,0;0,0,0;0,0,0" {
		t.Errorf("links into instances: %s", got)
	}
}

func TestProfilesAreNamedAsNVIDIADoes(t *testing.T) {
	for _, test := range []struct {
		cardMiB, instanceMiB uint64
		gpu, compute         uint32
		want                 string
	}{
		{40960, 4864, 1, 1, "1g.5gb"}, {40960, 9856, 2, 2, "2g.10gb"}, {40960, 19968, 3, 3, "3g.20gb"},
		{40960, 19968, 4, 2, "2c.4g.20gb"}, {40960, 40192, 7, 7, "7g.40gb"},
		{81920, 9728, 1, 1, "1g.10gb"}, {81559, 40448, 3, 3, "3g.40gb"}, {143771, 17920, 1, 1, "1g.18gb"},
	} {
		attributes := nvml.DeviceAttributes{MemorySizeMB: test.instanceMiB, GpuInstanceSliceCount: test.gpu, ComputeInstanceSliceCount: test.compute}
		if got := profile(attributes, test.cardMiB); got != test.want {
			t.Errorf("%d of %d MiB: %s, want %s", test.instanceMiB, test.cardMiB, got, test.want)
		}
	}
}

func TestWithoutTheDriversNumbersInstancesAreRefused(t *testing.T) {
	boards := []board{{mig: []instance{{gi: 14, mib: 4864, compute: 1}}}}
	finder := Finder{Split: 20, Log: slog.New(slog.DiscardHandler), Proc: t.TempDir()}
	if _, err := finder.list(machine(boards...)); err == nil || !strings.Contains(err.Error(), "driver/nvidia-caps/mig-minors: no such file") ||
		!strings.Contains(err.Error(), "--proc-dir") {
		t.Errorf("%v", err)
	}
	finder.Proc = procWith(t, "gpu0/gi1/access 12\n")
	if _, err := finder.list(machine(boards...)); err == nil || !strings.Contains(err.Error(), `no line "gpu0/gi14/access"`) {
		t.Errorf("%v", err)
	}
	finder.Proc = procWith(t, "gpu0/gi14/access\n")
	if _, err := finder.list(machine(boards...)); err == nil || !strings.Contains(err.Error(), "is not `<name> <number>`") {
		t.Errorf("%v", err)
	}
}

// In a pod, what the host mounted over /proc/driver is seen through the host's first process only.
func TestTheHostsOwnProcfsIsAskedWhereThePodsLacksTheNumbers(t *testing.T) {
	found, err := readCapabilities(procWith(t, "gpu0/gi1/access 12\n", "1", "root", "proc"))
	if err != nil || found["gpu0/gi1/access"] != 12 {
		t.Errorf("%v, %v", found, err)
	}
}

// procWith is a procfs whose driver numbers capabilities so, at a place below it.
func procWith(t *testing.T, text string, place ...string) string {
	t.Helper()
	proc := t.TempDir()
	file := filepath.Join(append(append([]string{proc}, place...), capabilityFile)...)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return proc
}

// minors is what the driver writes: 15 GPU instances a card, 8 compute instances in each.
func minors(cards int) string {
	text := "config 1\nmonitor 2\n"
	number := 3
	for card := range cards {
		for gi := range 15 {
			text += fmt.Sprintf("gpu%d/gi%d/access %d\n", card, gi, number)
			number++
			for ci := range 8 {
				text += fmt.Sprintf("gpu%d/gi%d/ci%d/access %d\n", card, gi, ci, number)
				number++
			}
		}
	}
	return text
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
