// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package nvmlwatch

import "errors"

var errNoCgo = errors.New("built without cgo: NVML can't be loaded; build with CGO_ENABLED=1")

// Reader can't ask: NVML is a C library that is loaded at run time.
type Reader struct{}

// New takes the path of the driver's NVML library.
func New(string) *Reader { return &Reader{} }

// Close does nothing.
func (*Reader) Close() {}

// IsOpen is never so.
func (*Reader) IsOpen() bool { return false }

// Samples can't be had without cgo.
func (*Reader) Samples(string, uint64) ([]Sample, error) { return nil, errNoCgo }

// Busy can't be had without cgo.
func (*Reader) Busy(string) (int, error) { return 0, errNoCgo }

// Processes can't be had without cgo.
func (*Reader) Processes(string) ([]Process, error) { return nil, errNoCgo }

// Driver can't be had without cgo.
func (*Reader) Driver() (Driver, error) { return Driver{}, errNoCgo }

// Status can't be had without cgo.
func (*Reader) Status(string) (Status, error) { return Status{}, errNoCgo }
