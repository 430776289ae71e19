// SPDX-License-Identifier: GPL-3.0-or-later

//go:build tools

// Package kwok pins the kwok of `make bench-scheduler`; nothing here is compiled into it.
package kwok

import _ "sigs.k8s.io/kwok/cmd/kwok"
