// SPDX-License-Identifier: Apache-2.0

// Package announce keeps a node's annotations true: soon after a change, regularly without one, and
// without haste while the API server is away.
package announce

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	// regularly is how often schedulers want to hear that this program lives.
	regularly = 30 * time.Second
	// atMost is one write in this time, however much changes.
	atMost = time.Second
	// longest keeps a node from looking dead for long once the API server is back.
	longest = 30 * time.Second
)

// Deps is the world around an Announcer.
type Deps struct {
	// Values are the annotations as of now.
	Values func() map[string]string
	Write  func(ctx context.Context, values map[string]string) error
	Log    *slog.Logger
}

// Announcer writes annotations.
type Announcer struct {
	Deps
	changed chan struct{}
}

// New makes an Announcer; Run starts it.
func New(deps Deps) *Announcer {
	return &Announcer{Deps: deps, changed: make(chan struct{}, 1)}
}

// Changed says that Values gives something else now. It never waits.
func (a *Announcer) Changed() {
	select {
	case a.changed <- struct{}{}:
	default: // the coming write has it
	}
}

// Run never gives up: without it no new pod is placed here, but those that run don't care.
func (a *Announcer) Run(ctx context.Context) {
	failures := 0
	for {
		if err := a.Write(ctx, a.Values()); err == nil {
			a.over(failures)
			failures = 0
			a.rest(ctx)
		} else if ctx.Err() == nil {
			if failures++; failures == 1 {
				a.Log.Warn("node annotations not written; trying on", "error", err)
			}
			wait(ctx, backoff(failures, rand.Float64()), nil)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

func (a *Announcer) over(failures int) {
	if failures > 0 {
		a.Log.Info("node annotations are written again", "failures", failures)
	}
}

// rest waits for a change, or until it is time to say so again. A tenth less at random keeps the nodes of
// a cluster from speaking all at once.
func (a *Announcer) rest(ctx context.Context) {
	wait(ctx, atMost, nil)
	wait(ctx, regularly-atMost-time.Duration(rand.Float64()*float64(regularly/10)), a.changed)
}

// backoff after so many failures in a row: doubling from 1 s, up to half of it by chance (0 to 1), so that
// the nodes don't come back as one wave.
func backoff(failures int, chance float64) time.Duration {
	full := min(time.Second<<min(failures-1, 10), longest)
	return full - time.Duration(chance*float64(full/2))
}

func wait(ctx context.Context, duration time.Duration, early <-chan struct{}) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-early:
	}
}
