// SPDX-License-Identifier: Apache-2.0

package tend

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"flexai.io/xpu/cluster/nvmlwatch"
	"flexai.io/xpu/cluster/trim"
)

// patience is how long the end waits for NVML.
const patience = 2 * time.Second

// look is one look at a card through NVML.
type look struct {
	uuid      string
	began     int64
	seen      trim.Look
	processes []nvmlwatch.Process
	listed    bool // processes were asked for
	unsampled bool // NVML samples nobody on such a card
	err       error
}

// pollers ask NVML about cards, each card in a goroutine of its own.
type pollers struct {
	ctx   context.Context
	deps  Deps
	out   chan<- look
	cards map[string]*poller
	open  bool
	group sync.WaitGroup
}

type poller struct {
	uuid   string
	wanted atomic.Bool
	newest uint64 // timestamp of the newest sample seen
	listed int64  // when processes were listed last
}

func newPollers(ctx context.Context, deps Deps, out chan<- look) *pollers {
	return &pollers{ctx: ctx, deps: deps, out: out, cards: map[string]*poller{}}
}

// want says which cards to look at. With none, NVML is given back: nobody computes, and an upgrade of
// the driver must not fail because of us.
func (p *pollers) want(uuids map[string]bool) {
	for uuid, one := range p.cards {
		one.wanted.Store(uuids[uuid])
	}
	for uuid := range uuids {
		if p.cards[uuid] == nil {
			one := &poller{uuid: uuid}
			one.wanted.Store(true)
			p.cards[uuid] = one
			p.group.Go(func() { p.loop(one) })
		}
	}
	if p.open && len(uuids) == 0 {
		// Not here: a question under way may take its time, and closing waits for it.
		p.group.Go(p.deps.NVML.Close)
	}
	p.open = len(uuids) > 0
}

// wait lets questions under way end, but a driver that hangs doesn't keep us from ending.
func (p *pollers) wait() {
	ended := make(chan struct{})
	go func() {
		p.group.Wait()
		p.deps.NVML.Close()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		p.deps.Log.Warn("NVML did not answer; ending without it")
	}
}

func (p *pollers) loop(one *poller) {
	for {
		pause := lookIdle
		if one.wanted.Load() {
			found := one.look(p.deps)
			select {
			case p.out <- found:
			case <-p.ctx.Done():
				return
			}
			pause = lookEvery
			if found.err != nil {
				pause = lookAgain
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-p.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// look asks for a second back rather than for what is new: NVML's own idea of "since" goes wrong for
// good when its clock jumps.
func (o *poller) look(deps Deps) look {
	began := deps.Now()
	found := look{uuid: o.uuid, began: began.MonoNs, seen: trim.Look{Busy: -1}}
	samples, err := deps.NVML.Samples(o.uuid, uint64((began.WallNs-int64(time.Second))/1000))
	if errors.Is(err, nvmlwatch.ErrUnsupported) {
		found.unsampled = true
		return o.list(deps, found)
	}
	if err != nil {
		found.err = err
		return found
	}
	now := deps.Now()
	fresh := false
	for _, sample := range samples {
		at := int64(sample.AtUs)*1000 - now.WallNs + now.MonoNs
		found.seen.Samples = append(found.seen.Samples, trim.Sample{PID: sample.PID, At: at, Percent: sample.Percent})
		if sample.AtUs > o.newest {
			o.newest, fresh = sample.AtUs, true
		}
	}
	if !fresh {
		if found.seen.Busy, found.err = deps.NVML.Busy(o.uuid); found.err != nil {
			return found
		}
	}
	return o.list(deps, found)
}

// list asks for the card's processes too, when it is time.
func (o *poller) list(deps Deps, found look) look {
	found.seen.At = deps.Now().MonoNs
	if found.seen.At-o.listed >= processEvery {
		o.listed, found.listed = found.seen.At, true
		found.began = deps.Now().MonoNs
		found.processes, found.err = deps.NVML.Processes(o.uuid)
	}
	return found
}
