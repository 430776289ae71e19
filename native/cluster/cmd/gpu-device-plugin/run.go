// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"flexai.io/xpu/cluster/agent"
	"flexai.io/xpu/cluster/evict"
	"flexai.io/xpu/cluster/health"
	"flexai.io/xpu/cluster/pids"
	"flexai.io/xpu/cluster/plugin"
	"flexai.io/xpu/cluster/store"
	"flexai.io/xpu/cluster/tend"
	"flexai.io/xpu/cluster/xpu"
)

const (
	reapInterval = 5 * time.Second
	// kubeletPoll is short so that a kubelet which comes up has its resources before it admits pods again.
	kubeletPoll = 200 * time.Millisecond
	// numberSocket is upstream's name; it stays with the resource it belonged to.
	numberSocket = "xpu.sock"
)

// server is the API server, as far as run needs it.
type server interface {
	agent.Pods
	evict.API
	Annotate(ctx context.Context, annotations map[string]string) error
}

// watched are the node's pods as somebody keeps them.
type watched interface {
	Run(ctx context.Context)
	Known(uid string) (agent.Pod, bool)
}

// deps is the world as run sees it.
type deps struct {
	discover func() ([]xpu.Card, error)
	kubelet  agent.Kubelet
	api      server
	pods     watched
	now      func() time.Time
	log      *slog.Logger
	nvml     tend.NVML
	driver   health.Driver
	looks    health.Pace
	inUse    func() bool // whether slices have processes
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

// run serves until ctx ends. A card that comes to the node begins another life of it, in which it is offered too.
func run(ctx context.Context, cfg config, d deps) error {
	for {
		err := life(ctx, cfg, d)
		if !errors.Is(err, health.ErrNewCard) {
			return err
		}
	}
}

// life is one of them: the node's cards are those of its beginning.
func life(ctx context.Context, cfg config, d deps) error {
	cards, err := d.discover()
	if err != nil {
		return err
	}
	if len(cards) == 0 {
		return fmt.Errorf("NVML library %s shows no card on node %s that can be sliced; take the label "+
			"gpupool.com/gpu-ready off the node, or repair its driver", cfg.nvml, cfg.node)
	}
	disk, err := store.Open(cfg.paths)
	if err != nil {
		return err
	}
	disk.OnError = cfg.onError
	changed := make(chan struct{}, 1)
	binder, err := agent.New(agent.Deps{Resources: cfg.resources, Cards: cards, Class: cfg.class, Kubelet: d.kubelet,
		Pods: d.api, Known: d.pods.Known, Store: disk, Now: d.now, Log: d.log, Changed: func() { poke(changed) }})
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	known := &held{}
	n := &node{binder: binder, resources: resources(cfg, cards, binder, known), announcer: announcing(d, binder), held: known,
		evictions: evict.NewQueue(d.api, d.log), patience: cfg.evictAfter, log: d.log}
	service := cfg.pidsService(func() ([]xpu.Card, error) { return cards, nil }, d.gauges, d.log)
	tending := cfg.tendDeps(d.nvml, d.log, service.Observe)
	tending.Evictor = n.evictions
	var group sync.WaitGroup
	group.Go(func() { d.pods.Run(ctx) })
	group.Go(func() { binder.Reap(ctx, reapInterval) })
	group.Go(func() { binder.SettleAhead(ctx) })
	group.Go(func() { n.run(ctx, reapInterval, changed) })
	group.Go(func() { n.announcer.Run(ctx) })
	group.Go(func() { n.evictions.Run(ctx) })
	group.Go(func() { tendAlone(ctx, cfg.paths, tending, cfg.servePids(service, d.log)) })
	group.Go(func() {
		if err := judge(ctx, cfg, d, cards, binder, func() { n.announcer.Changed(); poke(changed) }); err != nil {
			end(err)
		}
	})
	err = plugin.Serve(ctx, cfg.devicePlugins, n.resources, kubeletPoll, d.log)
	group.Wait()
	if cause := context.Cause(ctx); errors.Is(cause, health.ErrNewCard) {
		return cause
	}
	return err
}

// poke never waits: what is told already need not be told twice.
func poke(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default:
	}
}

func resources(cfg config, cards []xpu.Card, binder *agent.Agent, known *held) []plugin.Resource {
	split := func(card xpu.Card) int { return card.Split }
	cores := func(xpu.Card) int { return xpu.FullCores }
	memory := func(card xpu.Card) int { return int(card.MemoryMiB / xpu.MiBPerGiB) }
	return []plugin.Resource{
		{Name: cfg.resources.Number, Socket: numberSocket, IDs: plugin.Tokens(cards, "", split),
			Allocate: plugin.Indirection(cfg.strategy, binder.Dealt), Prepare: binder.Prepare, Withdrawn: plugin.NewWithdrawn(),
			Prefer: func(available, must []string, size int) []string {
				return plugin.Prefer(available, must, size, known.has)
			}},
		{Name: cfg.resources.Cores, Socket: "xpu-cores.sock", IDs: plugin.Tokens(cards, "c", cores),
			Allocate: plugin.Empty, Withdrawn: plugin.NewWithdrawn()},
		{Name: cfg.resources.Memory, Socket: "xpu-memory.sock", IDs: plugin.Tokens(cards, "m", memory),
			Allocate: plugin.Empty, Withdrawn: plugin.NewWithdrawn()},
	}
}
