// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package nvmlwatch

import (
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Driver asks for the versions of the driver and of its CUDA.
func (r *Reader) Driver() (Driver, error) {
	if err := r.ensureOpen(); err != nil {
		return Driver{}, err
	}
	r.mutex.RLock()
	defer r.mutex.RUnlock()
	if !r.open {
		return Driver{}, fmt.Errorf("NVML was closed meanwhile")
	}
	version, ret := r.library.SystemGetDriverVersion()
	if ret != nvml.SUCCESS {
		return Driver{}, fmt.Errorf("NVML: driver version: %s", r.library.ErrorString(ret))
	}
	found := Driver{Version: version}
	if cuda, ret := r.library.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
		found.CUDA = fmt.Sprintf("%d.%d", cuda/1000, cuda%1000/10)
	}
	return found, nil
}

// Status asks a card for its readings. One that this model doesn't have is absent.
func (r *Reader) Status(uuid string) (Status, error) {
	var found Status
	err := r.ask(uuid, "readings", func(device nvml.Device) nvml.Return {
		memory, ret := device.GetMemoryInfo()
		if ret != nvml.SUCCESS {
			return ret
		}
		found.UsedBytes = &memory.Used
		if rates, ret := device.GetUtilizationRates(); ret == nvml.SUCCESS {
			found.BusyPercent = number(rates.Gpu)
		}
		if power, ret := device.GetPowerUsage(); ret == nvml.SUCCESS {
			found.PowerMw = number(power)
		}
		if celsius, ret := device.GetTemperature(nvml.TEMPERATURE_GPU); ret == nvml.SUCCESS {
			found.Celsius = number(celsius)
		}
		return ret
	})
	return found, err
}

func number(value uint32) *float64 {
	made := float64(value)
	return &made
}
