// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package health

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"flexai.io/xpu/cluster/cards"
)

// NVML is a Driver that opens the library at the first question after Close. Not safe for concurrent use.
type NVML struct {
	library nvml.Interface
	path    string
	open    bool
	events  nvml.EventSet // nil: not asked for yet
}

// NewNVML takes the path of the driver's NVML library.
func NewNVML(path string) *NVML {
	return &NVML{library: nvml.New(nvml.WithLibraryPath(path)), path: path}
}

// Close gives the library back.
func (n *NVML) Close() {
	if n.events != nil {
		n.events.Free()
		n.events = nil
	}
	if n.open {
		n.library.Shutdown()
		n.open = false
	}
}

func (n *NVML) ensureOpen() error {
	if n.open {
		return nil
	}
	switch ret := n.library.Init(); ret {
	case nvml.SUCCESS:
		n.open = true
		return nil
	case nvml.ERROR_LIBRARY_NOT_FOUND: // then ErrorString can't be called
		return fmt.Errorf("NVML library %s: not found or not loadable", n.path)
	default:
		return n.failure("init", ret)
	}
}

func (n *NVML) failure(what string, ret nvml.Return) error {
	return fmt.Errorf("%s: %s", what, n.library.ErrorString(ret))
}

// Look asks each card for its memory: a lost one can't tell it.
func (n *NVML) Look() (map[string]error, error) {
	if err := n.ensureOpen(); err != nil {
		return nil, err
	}
	count, ret := n.library.DeviceGetCount()
	if ret != nvml.SUCCESS {
		n.Close()
		return nil, n.failure("count of cards", ret)
	}
	answers := map[string]error{}
	for index := range count {
		device, ret := n.library.DeviceGetHandleByIndex(index)
		if ret != nvml.SUCCESS {
			continue // it can't be named; that one of ours is missing is seen by its absence
		}
		// What can't be sliced is no news when it comes.
		sliceable, _ := cards.Sliceable(device)
		for _, one := range sliceable {
			n.look(one, answers)
		}
	}
	return answers, nil
}

func (n *NVML) look(device nvml.Device, answers map[string]error) {
	uuid, ret := device.GetUUID()
	if ret != nvml.SUCCESS {
		return
	}
	answers[uuid] = nil
	if _, ret := device.GetMemoryInfo(); ret != nvml.SUCCESS {
		answers[uuid] = n.failure("memory", ret)
	}
}

// Wait returns the next critical error of any card.
func (n *NVML) Wait(ctx context.Context, limit time.Duration) (*Event, error) {
	if err := n.subscribe(); err != nil {
		return nil, err
	}
	data, ret := n.events.Wait(uint32(limit.Milliseconds()))
	switch {
	case ret == nvml.ERROR_TIMEOUT || ctx.Err() != nil:
		return nil, nil
	case ret != nvml.SUCCESS:
		return nil, n.failure("wait for events", ret)
	case data.EventType != nvml.EventTypeXidCriticalError:
		return nil, nil
	}
	event := &Event{XID: data.EventData}
	if data.Device != nil {
		if uuid, ret := data.Device.GetUUID(); ret == nvml.SUCCESS {
			event.UUID, event.Cards = uuid, ailing(data)
		}
	}
	return event, nil
}

// everyInstance stands in an event that is of no single GPU instance.
const everyInstance = math.MaxUint32

// ailing are the UUIDs of what an event's card consists of: itself, or the instances that the event is about.
func ailing(data nvml.EventData) []string {
	uuids := []string{}
	devices, _ := cards.Sliceable(data.Device)
	for _, device := range devices {
		if device != data.Device && data.GpuInstanceId != everyInstance {
			id, ret := device.GetGpuInstanceId()
			if ret == nvml.SUCCESS && uint32(id) != data.GpuInstanceId {
				continue
			}
		}
		if uuid, ret := device.GetUUID(); ret == nvml.SUCCESS {
			uuids = append(uuids, uuid)
		}
	}
	return uuids
}

// subscribe registers with the cards that can report errors; some models can't.
func (n *NVML) subscribe() error {
	if err := n.ensureOpen(); err != nil {
		return err
	}
	if n.events != nil {
		return nil
	}
	count, ret := n.library.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return n.failure("count of cards", ret)
	}
	events, ret := n.library.EventSetCreate()
	if ret != nvml.SUCCESS {
		return n.failure("event set", ret)
	}
	registered := 0
	for index := range count {
		device, ret := n.library.DeviceGetHandleByIndex(index)
		if ret == nvml.SUCCESS && device.RegisterEvents(nvml.EventTypeXidCriticalError, events) == nvml.SUCCESS {
			registered++
		}
	}
	if registered == 0 {
		events.Free()
		return errors.New("no card reports events")
	}
	n.events = events
	return nil
}
