// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package cards

import (
	"fmt"
	"math"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"flexai.io/xpu/cluster/xpu"
)

// Sliceable are the devices of a card that can be sliced: itself or, in MIG mode, its instances. leftOut says of
// which devices that isn't so, and why.
func Sliceable(card nvml.Device) (devices []nvml.Device, leftOut map[string]string) {
	if current, _, ret := card.GetMigMode(); ret != nvml.SUCCESS || current != nvml.DEVICE_MIG_ENABLE {
		return []nvml.Device{card}, nil
	}
	leftOut = map[string]string{}
	places, ret := card.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		places = 0
	}
	var found []nvml.Device
	inside := map[int]int{} // compute instances by GPU instance
	for place := range places {
		if instance, ret := card.GetMigDeviceHandleByIndex(place); ret == nvml.SUCCESS { // most places are empty
			found = append(found, instance)
			inside[gpuInstanceOf(instance)]++
		}
	}
	for _, instance := range found {
		if inside[gpuInstanceOf(instance)] == 1 {
			devices = append(devices, instance)
			continue
		}
		uuid, _ := instance.GetUUID()
		leftOut[uuid] = "it shares the memory of its GPU instance with other compute instances, so none of them can be promised any; " +
			"make one compute instance in each GPU instance"
	}
	if len(found) == 0 {
		uuid, _ := card.GetUUID()
		leftOut[uuid] = "it is in MIG mode and has no instance; make some (nvidia-smi mig -cgi … -C), or take it out of MIG mode"
	}
	return devices, leftOut
}

// gpuInstanceOf is -1 where the driver doesn't tell; such ones look like sharing one.
func gpuInstanceOf(instance nvml.Device) int {
	id, ret := instance.GetGpuInstanceId()
	if ret != nvml.SUCCESS {
		return -1
	}
	return id
}

// readInstance is what an instance is, beside what every card is. parent is its card, read before.
func readInstance(library nvml.Interface, device nvml.Device, parent xpu.Card, known capabilities) (*xpu.Instance, error) {
	instance := &xpu.Instance{Parent: parent.UUID}
	var attributes nvml.DeviceAttributes
	for _, question := range []question{
		{"GPU instance", func() (r nvml.Return) { instance.GPU, r = device.GetGpuInstanceId(); return }},
		{"compute instance", func() (r nvml.Return) { instance.Compute, r = device.GetComputeInstanceId(); return }},
		{"attributes", func() (r nvml.Return) { attributes, r = device.GetAttributes(); return }},
	} {
		if err := question.put(library); err != nil {
			return nil, err
		}
	}
	instance.Profile = profile(attributes, parent.MemoryMiB)
	var err error
	instance.Capabilities, err = known.of(parent.Minor, instance.GPU, instance.Compute)
	return instance, err
}

// profile names a size as NVIDIA does: slices of compute, and gigabytes by eighths of the card's memory, since what an
// instance has is a little less (4.75 GiB of an A100 with 40 are 5gb).
func profile(attributes nvml.DeviceAttributes, cardMiB uint64) string {
	eighths := math.Ceil(8 * float64(attributes.MemorySizeMB) / float64(cardMiB))
	gigabytes := math.Round(eighths / 8 * math.Ceil(float64(cardMiB)/xpu.MiBPerGiB))
	name := fmt.Sprintf("%dg.%.0fgb", attributes.GpuInstanceSliceCount, gigabytes)
	if attributes.ComputeInstanceSliceCount < attributes.GpuInstanceSliceCount {
		name = fmt.Sprintf("%dc.%s", attributes.ComputeInstanceSliceCount, name)
	}
	return name
}
