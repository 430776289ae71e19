// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package health

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
)

// library is a driver with two cards; lost names those that don't answer, mute those without events.
func library(lost, mute map[int]bool, next *nvml.EventData) (*mock.Interface, *mock.EventSet) {
	events := &mock.EventSet{FreeFunc: func() nvml.Return { return nvml.SUCCESS },
		WaitFunc: func(uint32) (nvml.EventData, nvml.Return) {
			if next == nil {
				return nvml.EventData{}, nvml.ERROR_TIMEOUT
			}
			return *next, nvml.SUCCESS
		}}
	device := func(index int) *mock.Device {
		return &mock.Device{
			GetUUIDFunc:    func() (string, nvml.Return) { return fmt.Sprint("GPU-", index), nvml.SUCCESS },
			GetMigModeFunc: func() (int, int, nvml.Return) { return 0, 0, nvml.ERROR_NOT_SUPPORTED },
			GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) {
				if lost[index] {
					return nvml.Memory{}, nvml.ERROR_GPU_IS_LOST
				}
				return nvml.Memory{}, nvml.SUCCESS
			},
			RegisterEventsFunc: func(uint64, nvml.EventSet) nvml.Return {
				if mute[index] {
					return nvml.ERROR_NOT_SUPPORTED
				}
				return nvml.SUCCESS
			}}
	}
	if next != nil && next.Device == nil && next.EventData == 48 {
		next.Device = device(1)
	}
	return &mock.Interface{
		InitFunc: func() nvml.Return { return nvml.SUCCESS }, ShutdownFunc: func() nvml.Return { return nvml.SUCCESS },
		DeviceGetCountFunc:         func() (int, nvml.Return) { return 2, nvml.SUCCESS },
		DeviceGetHandleByIndexFunc: func(index int) (nvml.Device, nvml.Return) { return device(index), nvml.SUCCESS },
		EventSetCreateFunc:         func() (nvml.EventSet, nvml.Return) { return events, nvml.SUCCESS },
		ErrorStringFunc:            func(nvml.Return) string { return "GPU is lost" },
	}, events
}

func TestLookNamesWhoDoesNotAnswer(t *testing.T) {
	driver, _ := library(map[int]bool{1: true}, nil, nil)
	n := &NVML{library: driver}
	defer n.Close()
	answers, err := n.Look()
	if err != nil || len(answers) != 2 || answers["GPU-0"] != nil || answers["GPU-1"] == nil || answers["GPU-1"].Error() != "memory: GPU is lost" {
		t.Errorf("%v, %v", answers, err)
	}
}

func TestWaitSubscribesOnceAndGivesBack(t *testing.T) {
	driver, events := library(nil, map[int]bool{0: true}, &nvml.EventData{EventType: nvml.EventTypeXidCriticalError, EventData: 48})
	n := &NVML{library: driver}
	for range 3 {
		event, err := n.Wait(context.Background(), time.Second)
		if err != nil || event == nil || fmt.Sprint(*event) != "{GPU-1 [GPU-1] 48}" {
			t.Fatalf("%+v, %v", event, err)
		}
	}
	n.Close()
	if len(driver.InitCalls()) != 1 || len(driver.ShutdownCalls()) != 1 || len(driver.EventSetCreateCalls()) != 1 || len(events.FreeCalls()) != 1 {
		t.Errorf("opened %d, closed %d, sets made %d, freed %d", len(driver.InitCalls()), len(driver.ShutdownCalls()),
			len(driver.EventSetCreateCalls()), len(events.FreeCalls()))
	}
}

// divided is a card in MIG mode with instances of these GPU instances.
func divided(gpuInstances ...int) *mock.Device {
	return &mock.Device{
		GetUUIDFunc:              func() (string, nvml.Return) { return "GPU-0", nvml.SUCCESS },
		GetMigModeFunc:           func() (int, int, nvml.Return) { return nvml.DEVICE_MIG_ENABLE, nvml.DEVICE_MIG_ENABLE, nvml.SUCCESS },
		GetMaxMigDeviceCountFunc: func() (int, nvml.Return) { return 7, nvml.SUCCESS },
		GetMigDeviceHandleByIndexFunc: func(place int) (nvml.Device, nvml.Return) {
			if place >= len(gpuInstances) {
				return nil, nvml.ERROR_NOT_FOUND
			}
			id := gpuInstances[place]
			return &mock.Device{
				GetUUIDFunc:          func() (string, nvml.Return) { return fmt.Sprint("MIG-", id), nvml.SUCCESS },
				GetGpuInstanceIdFunc: func() (int, nvml.Return) { return id, nvml.SUCCESS },
				GetMemoryInfoFunc:    func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.SUCCESS },
			}, nvml.SUCCESS
		},
	}
}

func TestACardInMIGModeAnswersByItsInstances(t *testing.T) {
	driver, _ := library(nil, nil, nil)
	instances := []int{1, 9}
	driver.DeviceGetCountFunc = func() (int, nvml.Return) { return 1, nvml.SUCCESS }
	driver.DeviceGetHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return divided(instances...), nvml.SUCCESS }
	n := &NVML{library: driver}
	defer n.Close()
	if answers, err := n.Look(); err != nil || fmt.Sprint(answers) != "map[MIG-1:<nil> MIG-9:<nil>]" {
		t.Errorf("%v, %v", answers, err)
	}
	instances = []int{9, 10} // one destroyed, one made
	if answers, err := n.Look(); err != nil || fmt.Sprint(answers) != "map[MIG-10:<nil> MIG-9:<nil>]" {
		t.Errorf("%v, %v", answers, err)
	}
	instances = []int{9, 9} // two compute instances in one GPU instance can't be promised its memory
	if answers, err := n.Look(); err != nil || len(answers) != 0 {
		t.Errorf("%v, %v", answers, err)
	}
}

func TestACardsXIDAilsItsInstancesOrTheOneItNames(t *testing.T) {
	for of, want := range map[uint32]string{everyInstance: "[MIG-1 MIG-9]", 9: "[MIG-9]", 4: "[]"} {
		data := nvml.EventData{EventType: nvml.EventTypeXidCriticalError, EventData: 79, Device: divided(1, 9), GpuInstanceId: of}
		driver, _ := library(nil, nil, &data)
		n := &NVML{library: driver}
		event, err := n.Wait(context.Background(), time.Second)
		if err != nil || event.UUID != "GPU-0" || event.Cards == nil || fmt.Sprint(event.Cards) != want {
			t.Errorf("GPU instance %d: %+v, %v; want %s", of, event, err, want)
		}
		n.Close()
	}
}

func TestWithoutAnEventThereIsNone(t *testing.T) {
	driver, _ := library(nil, nil, nil)
	n := &NVML{library: driver}
	defer n.Close()
	if event, err := n.Wait(context.Background(), time.Second); event != nil || err != nil {
		t.Errorf("%+v, %v", event, err)
	}
	driver, events := library(nil, map[int]bool{0: true, 1: true}, nil)
	n = &NVML{library: driver}
	if _, err := n.Wait(context.Background(), time.Second); err == nil || err.Error() != "no card reports events" || len(events.FreeCalls()) != 1 {
		t.Errorf("%v", err)
	}
	n.Close()
}
