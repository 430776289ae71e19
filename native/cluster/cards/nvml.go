// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package cards

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"flexai.io/xpu/cluster/xpu"
)

const mib = 1 << 20

// Find asks NVML.
func (f Finder) Find() ([]xpu.Card, error) {
	library := nvml.New(nvml.WithLibraryPath(f.Path))
	if ret := library.Init(); ret != nvml.SUCCESS {
		return nil, fmt.Errorf("NVML library %s: %s; is the driver installed and its library directory mounted?",
			f.Path, describe(library, ret))
	}
	defer library.Shutdown()
	return f.list(library)
}

func (f Finder) list(library nvml.Interface) ([]xpu.Card, error) {
	count, ret := library.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("NVML: count of cards: %s", library.ErrorString(ret))
	}
	var devices []nvml.Device
	var found []xpu.Card
	for index := range count {
		device, card, err := read(library, index)
		switch {
		case errors.Is(err, errLost):
			f.Log.Warn("card is lost; going on without it", "index", index)
			continue
		case err != nil:
			return nil, fmt.Errorf("NVML: card %d: %w", index, err)
		case inMIG(device):
			// Its instances are other devices with nodes of their own, which no CDI entry of ours names yet.
			f.Log.Warn("card is in MIG mode and is left out; take it out of MIG mode to have it sliced",
				"card", card.UUID, "index", index)
			continue
		}
		card.Split, card.ShortName = f.Split, f.ShortNames[card.Model]
		devices, found = append(devices, device), append(found, card)
	}
	join(devices, found)
	return found, nil
}

var errLost = errors.New("card is lost")

func inMIG(device nvml.Device) bool {
	current, _, ret := device.GetMigMode()
	return ret == nvml.SUCCESS && current == nvml.DEVICE_MIG_ENABLE
}

// describe does without the library where it could not be loaded: then ErrorString can't be called.
func describe(library nvml.Interface, ret nvml.Return) string {
	if ret == nvml.ERROR_LIBRARY_NOT_FOUND {
		return "not found or not loadable"
	}
	return library.ErrorString(ret)
}

func read(library nvml.Interface, index int) (nvml.Device, xpu.Card, error) {
	device, ret := library.DeviceGetHandleByIndex(index)
	if ret != nvml.SUCCESS {
		return nil, xpu.Card{}, failure(library, "handle", ret)
	}
	card := xpu.Card{Index: index, NUMA: -1, Healthy: true}
	var memory nvml.Memory
	for _, question := range []struct {
		name string
		ask  func() nvml.Return
	}{
		{"UUID", func() (r nvml.Return) { card.UUID, r = device.GetUUID(); return }},
		{"minor number", func() (r nvml.Return) { card.Minor, r = device.GetMinorNumber(); return }},
		{"name", func() (r nvml.Return) { card.Model, r = device.GetName(); return }},
		{"memory", func() (r nvml.Return) { memory, r = device.GetMemoryInfo(); return }},
	} {
		if ret := question.ask(); ret != nvml.SUCCESS {
			return nil, card, failure(library, question.name, ret)
		}
	}
	card.MemoryMiB = memory.Total / mib
	if pci, ret := device.GetPciInfo(); ret == nvml.SUCCESS {
		card.NUMA = numaNode(fmt.Sprintf("%04x:%02x:%02x.0", pci.Domain, pci.Bus, pci.Device))
	}
	return device, card, nil
}

func failure(library nvml.Interface, what string, ret nvml.Return) error {
	if ret == nvml.ERROR_GPU_IS_LOST {
		return errLost
	}
	return fmt.Errorf("%s: %s", what, library.ErrorString(ret))
}

// numaNode is -1 where the machine doesn't say, as in the kernel's own file.
func numaNode(address string) int {
	text, err := os.ReadFile("/sys/bus/pci/devices/" + address + "/numa_node")
	if err != nil {
		return -1
	}
	node, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return -1
	}
	return node
}
