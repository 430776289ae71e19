// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package deviceplugin pins NVIDIA's device plugin for the testbed; nothing here is compiled into its programs.
package deviceplugin

import (
	_ "github.com/NVIDIA/k8s-device-plugin/cmd/config-manager"
	_ "github.com/NVIDIA/k8s-device-plugin/cmd/nvidia-device-plugin"
)
