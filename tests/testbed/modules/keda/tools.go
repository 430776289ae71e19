// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package keda pins KEDA for the testbed; nothing here is compiled into its programs.
package keda

import (
	_ "github.com/kedacore/keda/v2/cmd/adapter"
	_ "github.com/kedacore/keda/v2/cmd/operator"
)
