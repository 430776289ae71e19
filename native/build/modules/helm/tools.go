// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package helm pins the Helm that flexai.xpu ships; nothing here is compiled into it.
package helm

import _ "helm.sh/helm/v3/cmd/helm"
