// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package volcano pins the Volcano programs that are built together with the plugin.
package volcano

import (
	_ "volcano.sh/volcano/cmd/controller-manager"
	_ "volcano.sh/volcano/cmd/scheduler"
	_ "volcano.sh/volcano/cmd/webhook-manager"
)
