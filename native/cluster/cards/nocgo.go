// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package cards

import (
	"errors"

	"flexai.io/xpu/cluster/xpu"
)

// Find needs a build with cgo, since NVML is a C library that is loaded at run time.
func (Finder) Find() ([]xpu.Card, error) {
	return nil, errors.New("built without cgo: NVML can't be loaded; build with CGO_ENABLED=1")
}
