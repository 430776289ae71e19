// SPDX-License-Identifier: Apache-2.0

// Command coredns is the testbed's cluster DNS: upstream's server with the few plugins that its
// Corefile names (tests/testbed/testbed/cluster/dns.py).
package main

import (
	"github.com/coredns/coredns/coremain"

	// Plugins register themselves; their order is upstream's (core/dnsserver/zdirectives.go).
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	coremain.Run()
}
