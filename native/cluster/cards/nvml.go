// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// Package cards finds the cards of this machine through the driver's own library.
package cards

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"flexai.io/xpu/cluster/xpu"
)

const mib = 1 << 20

// Discover lists the cards that the NVML library at path shows, each to be split into at most split
// slices.
func Discover(path string, split int) ([]xpu.Card, error) {
	library := nvml.New(nvml.WithLibraryPath(path))
	if ret := library.Init(); ret != nvml.SUCCESS {
		return nil, fmt.Errorf("NVML library %s: %s; is the driver installed and its library directory mounted?",
			path, describe(library, ret))
	}
	defer library.Shutdown()
	count, ret := library.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("NVML: count of cards: %s", library.ErrorString(ret))
	}
	found := make([]xpu.Card, 0, count)
	for index := range count {
		card, err := read(library, index)
		if err != nil {
			return nil, fmt.Errorf("NVML: card %d: %w", index, err)
		}
		card.Split = split
		found = append(found, card)
	}
	return found, nil
}

// describe does without the library where it could not be loaded: then ErrorString can't be called.
func describe(library nvml.Interface, ret nvml.Return) string {
	if ret == nvml.ERROR_LIBRARY_NOT_FOUND {
		return "not found or not loadable"
	}
	return library.ErrorString(ret)
}

func read(library nvml.Interface, index int) (xpu.Card, error) {
	device, ret := library.DeviceGetHandleByIndex(index)
	if ret != nvml.SUCCESS {
		return xpu.Card{}, fmt.Errorf("%s", library.ErrorString(ret))
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
			return card, fmt.Errorf("%s: %s", question.name, library.ErrorString(ret))
		}
	}
	card.MemoryMiB = memory.Total / mib
	if pci, ret := device.GetPciInfo(); ret == nvml.SUCCESS {
		card.NUMA = numaNode(fmt.Sprintf("%04x:%02x:%02x.0", pci.Domain, pci.Bus, pci.Device))
	}
	return card, nil
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
