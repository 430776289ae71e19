// SPDX-License-Identifier: Apache-2.0

// Package trim compares what slices were charged with what NVML saw of them. Event time is wall time,
// so beside a busy neighbour a slice is charged the neighbour's time as well; the ratio of both,
// published as trim_q16, makes its share come out right. Pure: instants are nanoseconds of
// CLOCK_MONOTONIC, handed in.
//
// Both are compared over the same intervals and no others. A sample of NVML speaks of the one sample
// period before its timestamp. Periods without a sample are either idle (the card says so itself, or
// another process has a sample of that instant) or missing; counted as idle, missing ones would make
// every slice look overcharged and hand it more than its share.
package trim

import (
	"math"
	"slices"
)

const (
	// The limits that NVML's documentation gives for its sample period.
	shortestPeriod = int64(1e9) / 6
	longestPeriod  = int64(1e9)
	// longestMemory is how far back samples are looked for and periods remembered.
	longestMemory = int64(1e9)
	// horizon is the time over which coverage is judged.
	horizon = int64(2e9)
	// lookedAway: after so long without a look nobody can speak of the time between.
	lookedAway = int64(3e9)
	// MinCoverage is the part of the time that samples must speak of for the trim to follow them.
	MinCoverage = 0.8
	// busyCard and enoughSteps: see Timeline.learn.
	busyCard    = 80
	enoughSteps = 12
	// truncation is what whole percents, rounded down, hide on average.
	truncation = 0.5
)

// Sample is NVML's word on one process: percent of the sample period that ended at At.
type Sample struct {
	PID     int
	At      int64
	Percent int
}

// Look is one look at a card. Busy is the card's own utilisation in percent; -1 where not asked.
type Look struct {
	At      int64
	Samples []Sample
	Busy    int
}

// Window is an interval of which is known how long each process ran; who is not in Busy did not run.
type Window struct {
	From, To int64
	Busy     map[int]float64
}

// Timeline turns looks at one card into windows, each instant at most once.
type Timeline struct {
	began   int64 // first look, or first after a pause
	last    int64 // last look
	until   int64 // no window reaches back before it
	newest  int64 // timestamp of the newest sample taken
	period  int64 // NVML's sample period
	looks   int   // since the newest sample was taken
	steps   []int64
	covered []span
	strange bool
}

type span struct{ from, to int64 }

// Strange says that the last look's timestamps can't be of the time it was taken.
func (t *Timeline) Strange() bool { return t.strange }

// Observe takes a look and gives the window it completes.
func (t *Timeline) Observe(look Look) (Window, bool) {
	if t.began == 0 || look.At-t.last > lookedAway {
		t.steps = nil
		t.began, t.until = look.At, max(t.until, look.At-longestMemory)
	}
	t.last = look.At
	t.looks++
	if t.period == 0 {
		t.period = shortestPeriod
	}
	if look.Busy >= 0 && look.Busy < busyCard {
		t.steps, t.looks = nil, 0
	}
	newest := int64(math.MinInt64)
	for _, sample := range look.Samples {
		newest = max(newest, sample.At)
	}
	t.strange = newest > look.At+shortestPeriod/2
	switch {
	case t.strange:
		return Window{}, false
	case len(look.Samples) > 0 && newest > t.newest+shortestPeriod/2:
		return t.sampled(look.Samples, newest)
	case look.Busy == 0:
		return t.idle(look.At)
	}
	return Window{}, false
}

func (t *Timeline) sampled(samples []Sample, newest int64) (Window, bool) {
	if t.newest != 0 {
		t.learn(newest-t.newest, samples, newest)
	}
	t.newest, t.looks = newest, 0
	window := Window{From: max(newest-t.period, t.until), To: newest, Busy: map[int]float64{}}
	if window.From >= window.To {
		return Window{}, false
	}
	length := float64(window.To - window.From)
	for _, sample := range samples {
		if sample.At > newest-shortestPeriod/2 {
			window.Busy[sample.PID] += length * percent(sample.Percent) / 100
		}
	}
	t.cover(window)
	return window, true
}

// learn finds the sample period. It is taken for the shortest that NVML knows until enough samples in a
// row, looked for more often than they came, say otherwise: of a busy card, since an idle one gives no
// samples. Too short a belief leaves time uncovered, which is safe; too long a one invents use.
func (t *Timeline) learn(step int64, samples []Sample, newest int64) {
	busy := 0
	for _, sample := range samples {
		if sample.At > newest-shortestPeriod/2 {
			busy += sample.Percent
		}
	}
	switch {
	case step < t.period*7/10:
		t.period, t.steps = max(step, shortestPeriod), nil
	case busy < busyCard || t.looks < 2 || step > longestPeriod+shortestPeriod:
		t.steps = nil
	default:
		t.steps = append(t.steps, step)
	}
	if len(t.steps) == enoughSteps {
		if shortest := slices.Min(t.steps); shortest > t.period*13/10 {
			t.period = shortest
		}
		t.steps = nil
	}
}

func percent(whole int) float64 {
	if whole < 0 {
		return 0
	}
	return min(float64(whole)+truncation, 100)
}

// idle covers the sample periods that are complete by now.
func (t *Timeline) idle(now int64) (Window, bool) {
	if t.newest == 0 {
		return Window{}, false
	}
	complete := t.newest + (now-t.newest)/t.period*t.period
	// What lies further back was not seen idle, only not seen.
	window := Window{From: max(t.until, complete-t.period), To: complete, Busy: map[int]float64{}}
	if window.From >= window.To {
		return Window{}, false
	}
	t.cover(window)
	return window, true
}

func (t *Timeline) cover(window Window) {
	t.until = window.To
	t.covered = append(t.covered, span{window.From, window.To})
	for len(t.covered) > 0 && t.covered[0].to < window.To-2*horizon {
		t.covered = t.covered[1:]
	}
}

// Coverage is which part of the last two seconds windows speak of. What can't be known yet is left out:
// the newest period is still running, and before the first look nobody asked.
func (t *Timeline) Coverage(now int64) float64 {
	to := now - 2*max(t.period, shortestPeriod)
	from := max(to-horizon, t.began)
	if t.began == 0 || to-from < longestMemory {
		return 0
	}
	var sum int64
	for _, one := range t.covered {
		sum += max(0, min(one.to, to)-max(one.from, from))
	}
	return float64(sum) / float64(to-from)
}
