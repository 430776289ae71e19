// SPDX-License-Identifier: Apache-2.0

// Package vxpu is the JSON that PidsService.GetAllVxpuInfo answers with: what gpu-device-plugin tells
// about a node's cards, and xpu-exporter shows. Names and units of the fields up to Temperature and
// VxpuCoreLimit are flexai's; those below them are ours.
package vxpu

import (
	"encoding/json"
	"fmt"
)

// Node is a node's cards by UUID.
type Node map[string]*Card

// Card is one card. What NVML didn't tell is absent (nil).
type Card struct {
	Index             int
	Id                string // UUID
	Type              string // "GPU-<model>", as in annotation node-vgpu-register
	Health            bool
	Count             int      // most slices at a time
	MemoryTotal       uint64   // MiB
	MemoryUsed        uint64   // MiB, of the slices
	MemoryUtilization float64  // percent of MemoryTotal
	XpuUtilization    *float64 `json:",omitempty"` // percent, over NVML's last sample period
	NodeName          string
	NodeIp            string
	DriverVersion     string
	FrameworkVersion  string   // of CUDA
	PowerUsage        *float64 `json:",omitempty"` // mW
	Temperature       *float64 `json:",omitempty"` // °C
	VxpuDeviceList    []Slice

	Model          string
	CardMemoryUsed *uint64 `json:",omitempty"` // MiB, of everybody, by NVML
	Trouble        string  `json:",omitempty"` // why NVML's fields are absent
}

// Slice is one virtual card of a container.
type Slice struct {
	Id                    string // "<UUID>-<vid>", as in vgpu-ids.config
	GpuId                 string
	PodUID                string
	ContainerName         string
	VxpuMemoryUsed        uint64  // MiB
	VxpuMemoryUtilization float64 // percent of the card's memory
	VxpuCoreUtilization   float64 // percent of the card, over Period
	VxpuMemoryLimit       int64   // MiB
	VxpuCoreLimit         int64   // percent of the card; 0 is no limit

	Namespace   string
	Pod         string
	Mode        string
	MemoryBytes uint64
	// ShareInForce is the percent of the card that the slice may use now; modes elastic and priority
	// lend.
	ShareInForce float64
	Paused       bool
	// Counters since the container started.
	ChargedSeconds   float64 // GPU time
	ThrottledSeconds float64 // time its processes waited
	Denied           uint64  // allocations refused
	Launches         uint64
	// DebtSeconds is how far the slice's use is ahead of its share: how long it would have to pause.
	DebtSeconds float64
	Processes   int
}

// Encode is the answer's text.
func (n Node) Encode() (string, error) {
	text, err := json.Marshal(n)
	return string(text), err
}

// Decode reads an answer. Entries that are null, or that stand under another card's name, can't come from
// gpu-device-plugin.
func Decode(text string) (Node, error) {
	var node Node
	if err := json.Unmarshal([]byte(text), &node); err != nil {
		return nil, fmt.Errorf("answer of gpu-device-plugin: %w", err)
	}
	for uuid, card := range node {
		if card == nil || card.Id != uuid {
			return nil, fmt.Errorf("answer of gpu-device-plugin: entry %q is no card of that UUID", uuid)
		}
	}
	return node, nil
}
