// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"flexai.io/xpu/cluster/agent"
	"flexai.io/xpu/cluster/pids"
	"flexai.io/xpu/cluster/plugin"
	"flexai.io/xpu/cluster/store"
	"flexai.io/xpu/cluster/tend"
	"flexai.io/xpu/cluster/xpu"
)

const (
	reportInterval = 30 * time.Second
	reportRetry    = 5 * time.Second
	reapInterval   = 5 * time.Second
	kubeletPoll    = time.Second
	// numberSocket is upstream's name; it stays with the resource it belonged to.
	numberSocket = "xpu.sock"
)

// deps is the world as run sees it.
type deps struct {
	discover func() ([]xpu.Card, error)
	kubelet  agent.Kubelet
	pods     agent.Pods
	report   func(ctx context.Context, node string, cards []xpu.Card, now time.Time) error
	now      func() time.Time
	log      *slog.Logger
	nvml     tend.NVML
	gauges   pids.Gauges
}

// tendDeps is the world of package tend.
func (c config) tendDeps(nvml tend.NVML, log *slog.Logger, observe func([]tend.Seen)) tend.Deps {
	return tend.Deps{Slices: c.held, Pages: c.paths.Pages, Regrant: store.Regrant, NVML: nvml, Host: tend.Proc(c.tend.proc),
		Policy: c.tend.policy, Observe: observe, Now: tend.Now, Log: log}
}

// held are the slices of the node ledger, the host's own among them.
func (c config) held() ([]xpu.Slice, error) {
	ledger, err := store.Read(c.paths)
	return ledger.Slices(), err
}

// run serves until ctx ends.
func run(ctx context.Context, cfg config, d deps) error {
	cards, err := d.discover()
	if err != nil {
		return err
	}
	if len(cards) == 0 {
		return fmt.Errorf("NVML library %s shows no card on node %s; take the label gpupool.com/gpu-ready "+
			"off the node, or repair its driver", cfg.nvml, cfg.node)
	}
	disk, err := store.Open(cfg.paths)
	if err != nil {
		return err
	}
	disk.OnError = cfg.onError
	binder, err := agent.New(agent.Deps{Resources: cfg.resources, Cards: cards, Kubelet: d.kubelet,
		Pods: d.pods, Store: disk, Log: d.log})
	if err != nil {
		return err
	}
	service := cfg.pidsService(func() ([]xpu.Card, error) { return cards, nil }, d.gauges, d.log)
	var group sync.WaitGroup
	group.Go(func() { binder.Reap(ctx, reapInterval) })
	group.Go(func() { reportLoop(ctx, cfg.node, cards, d) })
	group.Go(func() {
		tendAlone(ctx, cfg.paths, cfg.tendDeps(d.nvml, d.log, service.Observe), cfg.servePids(service, d.log))
	})
	err = plugin.Serve(ctx, cfg.devicePlugins, resources(cfg, cards, binder), kubeletPoll, d.log)
	group.Wait()
	return err
}

func resources(cfg config, cards []xpu.Card, binder *agent.Agent) []plugin.Resource {
	split := func(card xpu.Card) int { return card.Split }
	cores := func(xpu.Card) int { return xpu.FullCores }
	memory := func(card xpu.Card) int { return int(card.MemoryMiB / xpu.MiBPerGiB) }
	return []plugin.Resource{
		{Name: cfg.resources.Number, Socket: numberSocket, IDs: plugin.Tokens(cards, "", split),
			Allocate: plugin.Indirection(cfg.strategy), Prepare: binder.Prepare},
		{Name: cfg.resources.Cores, Socket: "xpu-cores.sock", IDs: plugin.Tokens(cards, "c", cores),
			Allocate: plugin.Empty},
		{Name: cfg.resources.Memory, Socket: "xpu-memory.sock", IDs: plugin.Tokens(cards, "m", memory),
			Allocate: plugin.Empty},
	}
}

// reportLoop never gives up: without it no new pod is placed here, but those that run don't care.
func reportLoop(ctx context.Context, node string, cards []xpu.Card, d deps) {
	for ctx.Err() == nil {
		interval := reportInterval
		if err := d.report(ctx, node, cards, d.now()); err != nil && ctx.Err() == nil {
			d.log.Warn("node annotations not written; trying again", "node", node, "error", err)
			interval = reportRetry
		}
		timer := time.NewTimer(interval)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}
