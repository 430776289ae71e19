// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"flexai.io/xpu/cluster/agent"
	"flexai.io/xpu/cluster/announce"
	"flexai.io/xpu/cluster/evict"
	"flexai.io/xpu/cluster/health"
	"flexai.io/xpu/cluster/kube"
	"flexai.io/xpu/cluster/plugin"
	"flexai.io/xpu/cluster/xpu"
)

// node is what one life of the plugin looks after, beside answering the kubelet.
type node struct {
	binder    *agent.Agent
	resources []plugin.Resource
	announcer *announce.Announcer
	evictions *evict.Queue
	patience  time.Duration // 0: nobody is evicted for want of room
	log       *slog.Logger
	held      *held
	bound     string // what was bound at the last look
}

// held are the ids of slices as of the last look. The kubelet asks for them while it admits pods, which
// must not wait for a ledger that is being written; a preference may be a moment old.
type held struct {
	ids atomic.Pointer[map[string]bool]
}

func (h *held) set(slices []xpu.Slice) {
	ids := map[string]bool{}
	for _, slice := range slices {
		for _, token := range slice.Tokens {
			ids[token] = true
		}
	}
	h.ids.Store(&ids)
}

func (h *held) has(id string) bool {
	ids := h.ids.Load()
	return ids != nil && (*ids)[id]
}

// look does each time what follows from what the node holds now.
func (n *node) look() {
	n.withdraw()
	slices := n.binder.Ledger().Slices()
	n.held.set(slices)
	if bound := xpu.SlicesValue(slices); bound != n.bound {
		n.bound = bound
		n.announcer.Changed()
	}
	if n.patience == 0 {
		return
	}
	for _, one := range n.binder.Starving(n.patience) {
		owner := one.Owner
		n.evictions.Add(evict.Victim{Pod: one.Pod, Reason: evict.NoRoom, Message: one.Message,
			Still: func() bool { return n.binder.Starves(owner) }})
	}
}

// withdraw tells the kubelet which ids stand for nothing.
func (n *node) withdraw() {
	offered := map[string][]string{}
	for _, resource := range n.resources {
		offered[resource.Name] = resource.IDs
	}
	excess, err := n.binder.Excess(offered)
	if err != nil {
		n.log.Warn("ids in excess not known; trying again", "error", err)
		return
	}
	for _, resource := range n.resources {
		if resource.Withdrawn.Set(excess[resource.Name]) {
			n.log.Info("ids withdrawn", "resource", resource.Name, "ids", len(excess[resource.Name]))
		}
	}
}

// run looks every interval and whenever something changed.
func (n *node) run(ctx context.Context, interval time.Duration, changed <-chan struct{}) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		n.look()
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-changed:
		}
	}
}

// judge watches the cards' health and has new slices keep off the sick ones.
func judge(ctx context.Context, cfg config, d deps, cards []xpu.Card, binder *agent.Agent, changed func()) error {
	uuids := make([]string, 0, len(cards))
	for _, card := range cards {
		uuids = append(uuids, card.UUID)
	}
	return health.Watch(ctx, health.Deps{Driver: d.driver, Judge: health.NewJudge(uuids, cfg.xidQuiet), Pace: d.looks, InUse: d.inUse, Log: d.log,
		Changed: func(sick map[string]string) {
			binder.SetCards(withHealth(cards, sick))
			changed()
		}})
}

func withHealth(cards []xpu.Card, sick map[string]string) []xpu.Card {
	judged := make([]xpu.Card, len(cards))
	for i, card := range cards {
		_, ill := sick[card.UUID]
		card.Healthy = !ill
		judged[i] = card
	}
	return judged
}

// announcing keeps the node's annotations true.
func announcing(d deps, binder *agent.Agent) *announce.Announcer {
	return announce.New(announce.Deps{
		Values: func() map[string]string {
			return kube.NodeAnnotations(binder.KnownCards(), binder.Ledger().Slices(), d.now())
		},
		Write: d.api.Annotate, Log: d.log,
	})
}
