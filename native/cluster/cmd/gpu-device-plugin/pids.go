// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"

	"flexai.io/xpu/cluster/pids"
	"flexai.io/xpu/cluster/xpu"
)

// pidsService answers from the ledger and from what the keeper sees.
func (c config) pidsService(cards func() ([]xpu.Card, error), gauges pids.Gauges, log *slog.Logger) *pids.Service {
	return pids.New(pids.Deps{
		Procfs: pids.Procfs(c.tend.proc),
		Slices: c.held,
		ConfigPage: func(slice xpu.Slice) string {
			page, _ := c.paths.Pages(slice)
			return page
		},
		WritePids: c.paths.WritePids,
		Node:      pids.NodeDeps{Name: c.node, IP: c.pids.nodeIP, Cards: cards, Slices: c.held, Gauges: gauges},
		Log:       log,
	})
}

// servePids serves until its context ends. Without the sockets slices are given out and looked after all the
// same.
func (c config) servePids(service *pids.Service, log *slog.Logger) func(context.Context) {
	sockets := pids.Sockets{Public: c.paths.Sockets(), Link: filepath.Join(c.paths.State, pids.SocketName),
		Guarded: filepath.Join(c.paths.State, "exporter"), Group: c.pids.group}
	return func(ctx context.Context) {
		if err := service.Serve(ctx, sockets); err != nil {
			log.Error("PidsService isn't served; xpu-client-tool and xpu-exporter get no answer", "error", err)
		}
	}
}

// onceFound remembers the first list that could be had: cards keep their UUIDs while a driver is loaded.
func onceFound(discover func() ([]xpu.Card, error)) func() ([]xpu.Card, error) {
	var mutex sync.Mutex
	var known []xpu.Card
	return func() ([]xpu.Card, error) {
		mutex.Lock()
		defer mutex.Unlock()
		if known != nil {
			return known, nil
		}
		found, err := discover()
		if err == nil && len(found) > 0 {
			known = found
		}
		return found, err
	}
}
