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
		handles, cards, err := f.read(library, index)
		switch {
		case errors.Is(err, errLost):
			f.Log.Warn("card is lost; going on without it", "index", index)
			continue
		case err != nil:
			return nil, fmt.Errorf("NVML: card %d: %w", index, err)
		}
		devices, found = append(devices, handles...), append(found, cards...)
	}
	join(devices, found)
	return found, nil
}

var errLost = errors.New("card is lost")

// describe does without the library where it could not be loaded: then ErrorString can't be called.
func describe(library nvml.Interface, ret nvml.Return) string {
	if ret == nvml.ERROR_LIBRARY_NOT_FOUND {
		return "not found or not loadable"
	}
	return library.ErrorString(ret)
}

// read is the card, or its instances.
func (f Finder) read(library nvml.Interface, index int) ([]nvml.Device, []xpu.Card, error) {
	device, ret := library.DeviceGetHandleByIndex(index)
	if ret != nvml.SUCCESS {
		return nil, nil, failure(library, "handle", ret)
	}
	card, err := f.readCard(library, device, index)
	if err != nil {
		return nil, nil, err
	}
	devices, leftOut := Sliceable(device)
	for uuid, why := range leftOut {
		f.Log.Warn("card is left out: "+why, "card", uuid, "index", index)
	}
	if len(devices) == 1 && devices[0] == device {
		return devices, []xpu.Card{card}, nil
	}
	instances, err := f.readInstances(library, devices, card)
	return devices, instances, err
}

// readInstances are these instances of a card. They have its place on the bus and its device node.
func (f Finder) readInstances(library nvml.Interface, devices []nvml.Device, parent xpu.Card) ([]xpu.Card, error) {
	if len(devices) == 0 {
		return nil, nil
	}
	known, err := readCapabilities(f.Proc)
	if err != nil {
		return nil, err
	}
	var found []xpu.Card
	for place, device := range devices {
		card := parent
		if err := identify(library, device, &card); err != nil {
			return nil, fmt.Errorf("instance %d: %w", place, err)
		}
		if card.Instance, err = readInstance(library, device, parent, known); err != nil {
			return nil, fmt.Errorf("instance %s: %w", card.UUID, err)
		}
		card.Index = xpu.InstanceIndex(parent.Index, place)
		card.Model = parent.Model + " MIG " + card.Instance.Profile
		card.ShortName = f.ShortNames[card.Model]
		found = append(found, card)
	}
	return found, nil
}

// question is one that a card must answer.
type question struct {
	what string
	ask  func() nvml.Return
}

func (q question) put(library nvml.Interface) error {
	if ret := q.ask(); ret != nvml.SUCCESS {
		return failure(library, q.what, ret)
	}
	return nil
}

// identify asks for what cards and instances have alike.
func identify(library nvml.Interface, device nvml.Device, card *xpu.Card) error {
	var memory nvml.Memory
	for _, question := range []question{
		{"UUID", func() (r nvml.Return) { card.UUID, r = device.GetUUID(); return }},
		{"memory", func() (r nvml.Return) { memory, r = device.GetMemoryInfo(); return }},
	} {
		if err := question.put(library); err != nil {
			return err
		}
	}
	card.MemoryMiB = memory.Total / mib
	return nil
}

func (f Finder) readCard(library nvml.Interface, device nvml.Device, index int) (xpu.Card, error) {
	card := xpu.Card{Index: index, NUMA: -1, Healthy: true, Split: f.Split}
	for _, question := range []question{
		{"minor number", func() (r nvml.Return) { card.Minor, r = device.GetMinorNumber(); return }},
		{"name", func() (r nvml.Return) { card.Model, r = device.GetName(); return }},
	} {
		if err := question.put(library); err != nil {
			return card, err
		}
	}
	card.ShortName = f.ShortNames[card.Model]
	if pci, ret := device.GetPciInfo(); ret == nvml.SUCCESS {
		card.NUMA = numaNode(fmt.Sprintf("%04x:%02x:%02x.0", pci.Domain, pci.Bus, pci.Device))
	}
	return card, identify(library, device, &card)
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
