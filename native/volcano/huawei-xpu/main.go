// SPDX-License-Identifier: Apache-2.0

// Command huawei-xpu is the scheduler plugin huawei-xpu.so, loaded by vc-scheduler --plugins-dir.
package main

import (
	"volcano.sh/volcano/pkg/scheduler/framework"

	"flexai.io/xpu/volcano/bridge"
)

// New is the symbol Volcano looks up.
func New(arguments framework.Arguments) framework.Plugin { return bridge.New(arguments) }

// A plugin has no main, but without one the usual tools (vet, test) refuse the package.
func main() {}
