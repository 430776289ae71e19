// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package cards

import (
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"flexai.io/xpu/cluster/xpu"
)

// join fills in how each two cards reach each other, as `nvidia-smi topo --matrix` would show it. What the
// driver doesn't tell is no link.
func join(devices []nvml.Device, cards []xpu.Card) {
	fabric := make([]nvLinks, len(devices))
	for i, device := range devices {
		fabric[i] = nvLinksOf(device)
		cards[i].Links = map[string]int{}
	}
	for i := range devices {
		for j := range devices {
			// Neither NVLink nor peer access reaches into an instance.
			if i == j || cards[i].Instance != nil || cards[j].Instance != nil {
				continue
			}
			value := ancestor(devices[i], devices[j])
			if count := fabric[i].to(fabric[j]); count > 0 {
				value = xpu.NVLink(count)
			}
			cards[i].Links[cards[j].UUID] = value
		}
	}
}

// ancestor is the value of two cards' way over PCIe.
func ancestor(one, other nvml.Device) int {
	level, ret := one.GetTopologyCommonAncestor(other)
	if ret != nvml.SUCCESS {
		return 0
	}
	return map[nvml.GpuTopologyLevel]int{
		nvml.TOPOLOGY_INTERNAL: xpu.LinkPIX, nvml.TOPOLOGY_SINGLE: xpu.LinkPIX, nvml.TOPOLOGY_MULTIPLE: xpu.LinkPXB,
		nvml.TOPOLOGY_HOSTBRIDGE: xpu.LinkPHB, nvml.TOPOLOGY_NODE: xpu.LinkNode, nvml.TOPOLOGY_SYSTEM: xpu.LinkSystem,
	}[level]
}

// address is where a card is on PCIe.
type address struct{ domain, bus, device uint32 }

func addressOf(pci nvml.PciInfo) address { return address{pci.Domain, pci.Bus, pci.Device} }

// nvLinks are the active NVLinks of one card.
type nvLinks struct {
	own      address
	peers    map[address]int // links straight to other cards
	switches int             // links into a switch, which joins all cards on it
}

func nvLinksOf(device nvml.Device) nvLinks {
	links := nvLinks{peers: map[address]int{}}
	if pci, ret := device.GetPciInfo(); ret == nvml.SUCCESS {
		links.own = addressOf(pci)
	}
	for link := range nvml.NVLINK_MAX_LINKS {
		if state, ret := device.GetNvLinkState(link); ret != nvml.SUCCESS || state != nvml.FEATURE_ENABLED {
			continue
		}
		if kind, ret := device.GetNvLinkRemoteDeviceType(link); ret == nvml.SUCCESS && kind == nvml.NVLINK_DEVICE_TYPE_SWITCH {
			links.switches++
		} else if remote, ret := device.GetNvLinkRemotePciInfo(link); ret == nvml.SUCCESS {
			links.peers[addressOf(remote)]++
		}
	}
	return links
}

func (l nvLinks) to(other nvLinks) int {
	return l.peers[other.own] + min(l.switches, other.switches)
}
