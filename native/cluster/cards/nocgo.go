// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

// Package cards finds the cards of this machine through the driver's own library.
package cards

import (
	"errors"

	"flexai.io/xpu/cluster/xpu"
)

// Discover needs a build with cgo, since NVML is a C library that is loaded at run time.
func Discover(string, int) ([]xpu.Card, error) {
	return nil, errors.New("built without cgo: NVML can't be loaded; build with CGO_ENABLED=1")
}
