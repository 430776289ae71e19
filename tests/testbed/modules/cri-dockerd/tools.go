// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package cridockerd pins cri-dockerd for the testbed; nothing here is compiled into its program.
package cridockerd

import _ "github.com/Mirantis/cri-dockerd"
