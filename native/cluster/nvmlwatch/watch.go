// SPDX-License-Identifier: Apache-2.0

// Package nvmlwatch reads what NVML sees of processes: how long they ran, what memory they hold.
package nvmlwatch

import "errors"

// ErrLost says that the card is off the bus; it comes back with a reset or a reboot.
var ErrLost = errors.New("card is lost")

// ErrUnsupported says that NVML doesn't know such a thing of this card: samples of processes of a MIG instance.
var ErrUnsupported = errors.New("not known of such a card")

// Sample is the newest sample of one process.
type Sample struct {
	PID     int
	AtUs    uint64 // end of its period, wall-clock microseconds
	Percent int
}

// Process is a process that holds memory on a card.
type Process struct {
	PID   int
	Bytes uint64
}

// Driver is the driver's own word.
type Driver struct {
	Version string
	CUDA    string // the newest it knows, "12.8"
}

// Status is what a card says of itself; nil where it can't.
type Status struct {
	BusyPercent *float64 // over its latest sample period
	UsedBytes   *uint64
	PowerMw     *float64
	Celsius     *float64
}
