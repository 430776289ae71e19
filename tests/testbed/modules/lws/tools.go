// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package lws pins LeaderWorkerSet for the testbed; nothing here is compiled into its program.
package lws

import _ "sigs.k8s.io/lws/cmd"
