// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package containerd pins containerd 2 for the testbed; nothing here is compiled into its programs.
package containerd

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
	_ "github.com/containerd/containerd/v2/cmd/ctr"
)
