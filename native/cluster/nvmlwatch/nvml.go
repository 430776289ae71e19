// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package nvmlwatch

import (
	"fmt"
	"math"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Reader asks NVML. The library is opened at the first question and may be given back at any time: who
// holds it open keeps the driver from being upgraded. Safe for concurrent use; questions about
// different cards don't wait for each other.
type Reader struct {
	library nvml.Interface
	path    string
	mutex   sync.RWMutex // held shared by questions, alone by opening and closing
	open    bool
}

// New takes the path of the driver's NVML library.
func New(path string) *Reader {
	return &Reader{library: nvml.New(nvml.WithLibraryPath(path)), path: path}
}

// Close gives the library back until the next question.
func (r *Reader) Close() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.open {
		r.library.Shutdown()
		r.open = false
	}
}

// IsOpen says whether somebody asks these days.
func (r *Reader) IsOpen() bool {
	r.mutex.RLock()
	defer r.mutex.RUnlock()
	return r.open
}

func (r *Reader) ensureOpen() error {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.open {
		return nil
	}
	if ret := r.library.Init(); ret != nvml.SUCCESS {
		return fmt.Errorf("NVML library %s: %s", r.path, r.describe(ret))
	}
	r.open = true
	return nil
}

// describe does without the library where it could not be loaded: then ErrorString can't be called.
func (r *Reader) describe(ret nvml.Return) string {
	if ret == nvml.ERROR_LIBRARY_NOT_FOUND {
		return "not found or not loadable"
	}
	return r.library.ErrorString(ret)
}

// ask puts a question about a card. After an answer that a driver being exchanged would give, the
// library is opened anew at the next one.
func (r *Reader) ask(uuid, what string, question func(nvml.Device) nvml.Return) error {
	if err := r.ensureOpen(); err != nil {
		return err
	}
	ret, text := r.question(uuid, question)
	switch ret {
	case nvml.SUCCESS:
		return nil
	case nvml.ERROR_GPU_IS_LOST:
		return fmt.Errorf("card %s: %s: %w", uuid, what, ErrLost)
	case nvml.ERROR_NOT_SUPPORTED:
		return fmt.Errorf("card %s: %s: %w", uuid, what, ErrUnsupported)
	case nvml.ERROR_UNINITIALIZED, nvml.ERROR_DRIVER_NOT_LOADED, nvml.ERROR_LIB_RM_VERSION_MISMATCH, nvml.ERROR_NOT_FOUND:
		r.Close()
	}
	return fmt.Errorf("card %s: %s: %s", uuid, what, text)
}

// question words the answer while the library is surely open: its words are in it.
func (r *Reader) question(uuid string, question func(nvml.Device) nvml.Return) (nvml.Return, string) {
	r.mutex.RLock()
	defer r.mutex.RUnlock()
	if !r.open {
		return nvml.ERROR_UNINITIALIZED, "NVML was closed meanwhile"
	}
	device, ret := r.library.DeviceGetHandleByUUID(uuid)
	if ret == nvml.SUCCESS {
		ret = question(device)
	}
	return ret, r.library.ErrorString(ret)
}

// Samples are the newest sample of each process that ran on the card after sinceUs (wall clock).
func (r *Reader) Samples(uuid string, sinceUs uint64) ([]Sample, error) {
	var found []Sample
	err := r.ask(uuid, "process utilisation", func(device nvml.Device) nvml.Return {
		samples, ret := device.GetProcessUtilization(sinceUs)
		if ret == nvml.ERROR_NOT_FOUND || len(samples) == 0 && ret == nvml.ERROR_INSUFFICIENT_SIZE {
			return nvml.SUCCESS
		}
		for _, sample := range samples {
			if sample.TimeStamp > 0 {
				found = append(found, Sample{int(sample.Pid), sample.TimeStamp, int(sample.SmUtil)})
			}
		}
		return ret
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// Busy is the card's own utilisation in percent over its latest sample period.
func (r *Reader) Busy(uuid string) (int, error) {
	busy := 0
	err := r.ask(uuid, "utilisation", func(device nvml.Device) nvml.Return {
		rates, ret := device.GetUtilizationRates()
		busy = int(rates.Gpu)
		return ret
	})
	return busy, err
}

// Processes are those that hold memory on the card. One whose memory the driver doesn't tell is left
// out: it can't be compared with anything.
func (r *Reader) Processes(uuid string) ([]Process, error) {
	var found []Process
	err := r.ask(uuid, "processes", func(device nvml.Device) nvml.Return {
		infos, ret := device.GetComputeRunningProcesses()
		for _, info := range infos {
			if info.UsedGpuMemory != math.MaxUint64 {
				found = append(found, Process{int(info.Pid), info.UsedGpuMemory})
			}
		}
		return ret
	})
	return found, err
}
