// SPDX-License-Identifier: Apache-2.0

// Package nvmlwatch reads what NVML sees of processes: how long they ran, what memory they hold.
package nvmlwatch

import "errors"

// ErrLost says that the card is off the bus; it comes back with a reset or a reboot.
var ErrLost = errors.New("card is lost")

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
