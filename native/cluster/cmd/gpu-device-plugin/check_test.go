// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"
	"testing"

	"flexai.io/xpu/cluster/xpu"
)

func TestTheProbeFollowsThePlugin(t *testing.T) {
	h := newHost(t)
	ask := func() error {
		return check(context.Background(), []string{"--device-plugin-dir=" + h.cfg.devicePlugins})
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "does not answer on "+h.cfg.devicePlugins+"/xpu.sock") {
		t.Errorf("before the plugin runs: %v", err)
	}
	stop := h.start(t, xpu.Card{UUID: "GPU-1", MemoryMiB: 4096, Split: 2})
	h.endpoints(t)
	if err := ask(); err != nil {
		t.Errorf("while it runs: %v", err)
	}
	stop()
	if ask() == nil {
		t.Error("after it ended the probe is still content")
	}
}
