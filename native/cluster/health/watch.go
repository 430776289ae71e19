// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"time"
)

// Pace is how often what is asked.
type Pace struct {
	Wait  time.Duration // one wait for events
	InUse time.Duration // between two looks while slices have processes: then NVML is open anyway
	Idle  time.Duration // otherwise: each look opens it for a moment, and who holds it keeps the driver from being exchanged
}

// Regular is the pace of a node.
var Regular = Pace{Wait: time.Second, InUse: 5 * time.Second, Idle: 30 * time.Second}

// Event is a critical error that a card reported.
type Event struct {
	UUID  string   // of the card; empty: the driver couldn't say which
	Cards []string // those that it ails: the card, or instances of it; nil, as nobody knows better, are all
	XID   uint64
}

// Driver is what of NVML is needed.
type Driver interface {
	// Wait returns the next event; nil when none came in time.
	Wait(ctx context.Context, limit time.Duration) (*Event, error)
	// Look asks all cards for a sign of life: by UUID nil, or why there is none.
	Look() (map[string]error, error)
	// Close gives the library back until the next question.
	Close()
}

// ErrNewCard says that the node has a card that was not there at the start.
var ErrNewCard = errors.New("a card has come to the node")

// Deps is the world around Watch.
type Deps struct {
	Driver Driver
	Judge  *Judge
	Pace   Pace
	// InUse says whether slices have processes now.
	InUse func() bool
	// Changed hears which cards are sick, and why, whenever these are others.
	Changed func(sick map[string]string)
	Log     *slog.Logger
}

// watch is the state of Watch.
type watch struct {
	Deps
	sick     map[string]string
	nextLook time.Time
	mute     bool // said that events can't be had
	blind    bool // said that cards can't be looked at
}

// Watch judges the cards until ctx ends; it returns ErrNewCard when there is one more.
func Watch(ctx context.Context, deps Deps) error {
	w := &watch{Deps: deps, sick: map[string]string{}}
	defer w.Driver.Close()
	for ctx.Err() == nil {
		busy := w.InUse()
		now := time.Now()
		if !now.Before(w.nextLook) {
			if err := w.look(); err != nil {
				return err
			}
			w.nextLook = now.Add(map[bool]time.Duration{true: w.Pace.InUse, false: w.Pace.Idle}[busy])
		}
		if busy {
			w.listen(ctx)
			w.nextLook = earlier(w.nextLook, now.Add(w.Pace.InUse))
		} else {
			w.Driver.Close()
			sleep(ctx, w.Pace.Wait)
		}
		w.tell(time.Now())
	}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// look asks the cards. A driver that doesn't answer at all has none that could take a slice.
func (w *watch) look() error {
	answers, err := w.Driver.Look()
	if err != nil {
		if !w.blind {
			w.Log.Warn("NVML does not answer; no new slices until it does", "error", err)
		}
		w.blind = true
		answers = map[string]error{}
		for uuid := range w.Judge.cards {
			answers[uuid] = err
		}
	} else if w.blind {
		w.Log.Info("NVML answers again")
		w.blind = false
	}
	w.Judge.Looked(answers)
	for uuid, silent := range answers {
		// One that doesn't answer yet would be left out again.
		if _, known := w.Judge.cards[uuid]; !known && silent == nil {
			w.Log.Info("card has come to the node", "card", uuid)
			return ErrNewCard
		}
	}
	return nil
}

// listen waits for one event.
func (w *watch) listen(ctx context.Context) {
	event, err := w.Driver.Wait(ctx, w.Pace.Wait)
	switch {
	case err != nil:
		if !w.mute {
			w.Log.Warn("no events from NVML; going by looks alone", "error", err)
		}
		w.mute = true
		w.Driver.Close() // a driver that was exchanged is opened anew
		sleep(ctx, w.Pace.Wait)
	case w.mute:
		w.mute = false
		w.Log.Info("NVML gives events again")
	}
	if event != nil {
		w.Log.Warn("card reported an error", "card", event.UUID, "xid", event.XID, "critical", !harmless[event.XID])
		w.Judge.Event(event.Cards, event.XID, time.Now())
	}
}

// tell says what has changed.
func (w *watch) tell(now time.Time) {
	sick := w.Judge.Sick(now)
	if maps.Equal(sick, w.sick) {
		return
	}
	for uuid, why := range sick {
		if w.sick[uuid] != why {
			w.Log.Warn("card takes no new slices", "card", uuid, "reason", why)
		}
	}
	for uuid := range w.sick {
		if _, still := sick[uuid]; !still {
			w.Log.Info("card takes slices again", "card", uuid)
		}
	}
	w.sick = sick
	w.Changed(maps.Clone(sick))
}

func sleep(ctx context.Context, duration time.Duration) {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
