// SPDX-License-Identifier: Apache-2.0

package vxpu

import (
	"strings"
	"testing"
)

func TestTheContractsFieldsHaveTheirNames(t *testing.T) {
	zero := 0.0
	text, err := Node{"GPU-0": {Id: "GPU-0", XpuUtilization: &zero, PowerUsage: &zero, Temperature: &zero,
		VxpuDeviceList: []Slice{{}}}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(`Index Id Type Health Count MemoryTotal MemoryUsed MemoryUtilization XpuUtilization
		NodeName NodeIp DriverVersion FrameworkVersion PowerUsage Temperature VxpuDeviceList GpuId PodUID ContainerName
		VxpuMemoryUsed VxpuMemoryUtilization VxpuCoreUtilization VxpuMemoryLimit VxpuCoreLimit`) {
		if !strings.Contains(text, `"`+name+`":`) {
			t.Errorf("no field %s in %s", name, text)
		}
	}
	if !strings.HasPrefix(text, `{"GPU-0":{`) {
		t.Errorf("not keyed by UUID: %s", text)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	for text, want := range map[string]string{
		``:                       "answer of gpu-device-plugin",
		`[]`:                     "answer of gpu-device-plugin",
		`{"GPU-0":null}`:         `entry "GPU-0"`,
		`{"GPU-0":{"Id":"GPU"}}`: `entry "GPU-0"`,
	} {
		if _, err := Decode(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(`{"GPU-0":{"Id":"GPU-0","VxpuDeviceList":[{"Id":"GPU-0-1"}]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		node, err := Decode(text)
		if err != nil {
			return
		}
		again, err := node.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(again); err != nil {
			t.Errorf("%s: %v", again, err)
		}
	})
}
