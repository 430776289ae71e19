// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package health

import (
	"context"
	"errors"
	"time"
)

var errNoCgo = errors.New("built without cgo: NVML can't be loaded; build with CGO_ENABLED=1")

// NVML can't be had without cgo.
type NVML struct{}

// NewNVML takes the path of the driver's NVML library.
func NewNVML(string) *NVML { return &NVML{} }

// Close does nothing.
func (*NVML) Close() {}

// Look can't be had without cgo.
func (*NVML) Look() (map[string]error, error) { return nil, errNoCgo }

// Wait can't be had without cgo.
func (*NVML) Wait(context.Context, time.Duration) (*Event, error) { return nil, errNoCgo }
